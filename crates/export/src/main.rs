//! `oqvl-export`: a checkpoint in another tool's layout. What it does is `oqvl_model::export`'s.

use candle_core::Device;
use clap::{Parser, ValueEnum};
use oqvl_model::{
    Backbone, BackboneIds, ExportFormat, MAX_SHARD_BYTES, ModelError, VlmNames, check_new, export, read_vlm,
};
use oqvl_stage::{ConfigError, ModelFinder, ModelFlags, ProgramError, StageError, run_program, tell};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Writes a vision-language model for other tools.
#[derive(Debug, Parser)]
#[command(name = "oqvl-export", version)]
struct Args {
    #[command(flatten)]
    model: ModelFlags,
    /// Layout to write
    #[arg(long, value_name = "LAYOUT")]
    to: Layout,
    /// Folder to make; it must not be there yet
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// What the reference calls the vision tower, where it has not the shape of the release's (`--to reference`)
    #[arg(long, value_name = "ID")]
    vision_backbone_id: Option<String>,
    /// What the reference calls the language model, where it has not the shape of the release's (`--to reference`)
    #[arg(long, value_name = "ID")]
    llm_backbone_id: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Layout {
    /// transformers' `LlavaForConditionalGeneration`, with its processor
    Llava,
    /// The language model alone, transformers' `Qwen2ForCausalLM`
    Qwen2,
    /// The tensors of the reference's latest-checkpoint.pt, as safetensors
    Reference,
    /// A checkpoint that every stage here reads
    Checkpoint,
}

impl Args {
    fn names(&self) -> VlmNames<'_> {
        VlmNames {
            model: &self.model.model,
            vision_tower: self.model.vision_tower.as_deref(),
            language_model: self.model.language_model.as_deref(),
        }
    }

    fn format(&self) -> Result<ExportFormat, ExportError> {
        let ids = BackboneIds { vision: self.vision_backbone_id.clone(), llm: self.llm_backbone_id.clone() };
        Ok(match self.to {
            Layout::Reference => ExportFormat::Reference(ids),
            _ if ids != BackboneIds::default() => return Err(ExportError::Ids),
            Layout::Llava => ExportFormat::Llava,
            Layout::Qwen2 => ExportFormat::Qwen2,
            Layout::Checkpoint => ExportFormat::Checkpoint,
        })
    }
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("--vision-backbone-id and --llm-backbone-id are for --to reference")]
    Ids,
    #[error("no model")]
    Place(#[from] StageError),
    #[error(transparent)]
    Flag(ConfigError),
    #[error(transparent)]
    Model(ModelError),
}

impl From<ModelError> for ExportError {
    /// What a flag mends names the flag.
    fn from(error: ModelError) -> Self {
        match &error {
            ModelError::Incomplete { missing, .. } => {
                let parts = missing.iter().map(|(backbone, _)| backbone.name());
                Self::Flag(ModelFlags::missing(parts, &error.to_string()))
            }
            ModelError::NoBackboneId { backbone, .. } => {
                let flag = match backbone {
                    Backbone::VisionTower => "--vision-backbone-id",
                    Backbone::LanguageModel => "--llm-backbone-id",
                };
                Self::Flag(ConfigError::new(flag, error.to_string()))
            }
            _ => Self::Model(error),
        }
    }
}

impl ProgramError for ExportError {
    fn is_wrong_request(&self) -> bool {
        match self {
            Self::Ids | Self::Flag(_) => true,
            Self::Place(error) => error.is_wrong_request(),
            Self::Model(error) => error.is_wrong_request(),
        }
    }
}

fn main() -> ExitCode {
    run_program("oqvl-export", || run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), ExportError> {
    let format = args.format()?;
    // Before gigabytes are read.
    check_new(&args.out)?;
    let mut finder = ModelFinder::from_env();
    let folders = args.names().find::<ExportError>(
        |name, wants| Ok(finder.find(name, wants)?),
        |default| tell(&format!("{default}; {} names another", ModelFlags::flag(default.backbone.name()))),
    )?;
    let model = read_vlm(&folders.model, &folders.companions(), &Device::Cpu)?;
    let exported = export(&model, format, &args.out, MAX_SHARD_BYTES)?;
    let (files, bytes) = (exported.files.len(), exported.num_bytes);
    // What was asked for is there, whoever is told.
    let _ = writeln!(std::io::stdout(), "{}: {files} files, {bytes} bytes", args.out.display());
    Ok(())
}
