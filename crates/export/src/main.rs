//! `oqvl-export`: a checkpoint in another tool's layout. What it does is `oqvl_model::export`'s.

use candle_core::Device;
use clap::{Parser, ValueEnum};
use oqvl_model::{Companions, ExportFormat, Exported, MAX_SHARD_BYTES, ModelError, export, read_vlm};
use std::error::Error as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Writes a vision-language model for other tools.
#[derive(Debug, Parser)]
#[command(name = "oqvl-export", version)]
struct Args {
    /// Checkpoint: ours, transformers' LLaVA, the MLM-Filter release, or the reference's
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Folder of the SigLIP tower, for a checkpoint that holds none (the reference's)
    #[arg(long, value_name = "DIR")]
    vision_tower: Option<PathBuf>,
    /// Folder of the Qwen2 it was made from, for a checkpoint without tokenizer (the reference's)
    #[arg(long, value_name = "DIR")]
    language_model: Option<PathBuf>,
    /// Layout to write
    #[arg(long, value_name = "LAYOUT")]
    to: Layout,
    /// Folder to make; it must not be there yet
    #[arg(value_name = "OUT")]
    out: PathBuf,
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

impl From<Layout> for ExportFormat {
    fn from(layout: Layout) -> Self {
        match layout {
            Layout::Llava => Self::Llava,
            Layout::Qwen2 => Self::Qwen2,
            Layout::Reference => Self::Reference,
            Layout::Checkpoint => Self::Checkpoint,
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(exported) => {
            let (files, bytes) = (exported.files.len(), exported.num_bytes);
            let _ = writeln!(std::io::stdout(), "{}: {files} files, {bytes} bytes", args.out.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let mut line = format!("error: {error}");
            let mut cause = error.source();
            while let Some(inner) = cause {
                line += &format!(": {inner}");
                cause = inner.source();
            }
            let _ = writeln!(std::io::stderr(), "{line}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<Exported, ModelError> {
    let companions = Companions {
        vision_tower: args.vision_tower.as_deref(),
        language_model: args.language_model.as_deref(),
    };
    let model = read_vlm(&args.model, &companions, &Device::Cpu)?;
    export(&model, args.to.into(), &args.out, MAX_SHARD_BYTES)
}
