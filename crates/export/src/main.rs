//! `oqvl-export`: a checkpoint in another tool's layout. What it does is `oqvl_model::export`'s.

use candle_core::Device;
use clap::{Parser, ValueEnum};
use oqvl_model::{
    BackboneIds, ExportFormat, MAX_SHARD_BYTES, ModelError, VlmNames, check_new, export, read_vlm,
};
use oqvl_stage::{ModelFinder, ProgramError, StageError, run_program};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Writes a vision-language model for other tools.
#[derive(Debug, Parser)]
#[command(name = "oqvl-export", version)]
struct Args {
    /// Checkpoint: ours, transformers' LLaVA, the MLM-Filter release, or the reference's; a folder, or a model of the hub:
    /// owner/name or owner/name@revision
    #[arg(long, value_name = "DIR_OR_HUB_ID")]
    model: String,
    /// The SigLIP tower, for a checkpoint that holds none (the reference's); the release's is found by itself
    #[arg(long, value_name = "DIR_OR_HUB_ID")]
    vision_tower: Option<String>,
    /// The Qwen2 it was made from, for a checkpoint without tokenizer (the reference's); the release's is found by itself
    #[arg(long, value_name = "DIR_OR_HUB_ID")]
    language_model: Option<String>,
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
            model: &self.model,
            vision_tower: self.vision_tower.as_deref(),
            language_model: self.language_model.as_deref(),
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
    Model(#[from] ModelError),
}

impl ProgramError for ExportError {
    fn is_wrong_request(&self) -> bool {
        match self {
            Self::Ids => true,
            Self::Place(error) => error.is_wrong_request(),
            Self::Model(error) => matches!(
                error,
                ModelError::Exists { .. } | ModelError::Layout(_) | ModelError::Incomplete { .. }
            ),
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
    let say = |line: &str| drop(writeln!(std::io::stderr(), "{line}"));
    let folders = args.names().find::<ExportError>(|name, wants| Ok(finder.find(name, wants)?), say)?;
    let model = read_vlm(&folders.model, &folders.companions(), &Device::Cpu)?;
    let exported = export(&model, format, &args.out, MAX_SHARD_BYTES)?;
    let (files, bytes) = (exported.files.len(), exported.num_bytes);
    // What was asked for is there, whoever is told.
    let _ = writeln!(std::io::stdout(), "{}: {files} files, {bytes} bytes", args.out.display());
    Ok(())
}
