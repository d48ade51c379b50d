//! Our side of the runs against peers that no stage binary covers, and the data both sides work on.
//!
//! `cargo xtask bench peers` calls it; `docs/benchmarks.md` says what is measured and how. Everything made here is a
//! function of the seed in [`data`]; what is measured prints one JSON line of figures, as the Python peers do.
#![expect(clippy::print_stdout, reason = "the figures are the output of this program")]

mod data;
mod fetch_world;
mod measured;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Data and measured loops of the runs against peers.
#[derive(Debug, Parser)]
#[command(name = "oqvl-peers")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Write a world for `oqvl-world-server`: images and faults in fixed shares
    MakeWorld {
        /// Directory to write
        dir: PathBuf,
        /// Number of URLs
        #[arg(long)]
        urls: usize,
        /// Multiplies the sides of all images
        #[arg(long, default_value_t = 1.0)]
        scale: f64,
    },
    /// Write a folder of JPEG files
    MakeImages {
        /// Directory to write
        dir: PathBuf,
        /// Number of files
        #[arg(long)]
        count: usize,
        /// Multiplies the sides of all images
        #[arg(long, default_value_t = 1.0)]
        scale: f64,
    },
    /// Write shards as img2dataset leaves them, and a uid list that holds half of them
    MakePool {
        /// Directory to write
        dir: PathBuf,
        /// Number of shards
        #[arg(long)]
        shards: usize,
        /// Samples in every shard
        #[arg(long)]
        samples: usize,
        /// Number of different images; they are used in turn
        #[arg(long)]
        images: usize,
        /// Tab-separated captions to use in turn (column `caption`); made-up ones if not given
        #[arg(long)]
        captions: Option<PathBuf>,
        /// Multiplies the sides of all images
        #[arg(long, default_value_t = 1.0)]
        scale: f64,
    },
    /// Write a file of document lengths, one per line
    MakeLengths {
        /// File to write
        file: PathBuf,
        /// Number of lengths
        #[arg(long)]
        count: usize,
    },
    /// Read shards in order
    Read {
        /// Also digest everything that was read
        #[arg(long)]
        digest: bool,
        /// Shards
        shards: Vec<PathBuf>,
    },
    /// Read the scores of all sidecars of a directory
    Scores {
        /// Column
        metric: String,
        /// The directory
        dir: PathBuf,
    },
    /// Decode, resize and normalise the files of a folder
    Normalise {
        /// Also digest pixels and values
        #[arg(long)]
        digest: bool,
        /// Side of the result in pixels
        size: u32,
        /// How often to go through the folder
        repeats: usize,
        /// The folder
        dir: PathBuf,
    },
    /// Answer prompts about images greedily, in one batch
    Generate {
        /// Checkpoint directory
        model: PathBuf,
        /// A JSON list of lists of ids, -200 for the image
        prompts: PathBuf,
        /// Folder of images: one for each prompt, in name order
        images: PathBuf,
        /// Threads
        threads: usize,
        /// Tokens of every answer
        num_new_tokens: usize,
    },
    /// Pack a file of lengths, first-fit-decreasing
    BinPacking {
        /// Also digest the bins
        #[arg(long)]
        digest: bool,
        /// Capacity of a bin
        capacity: u32,
        /// How often to pack
        repeats: usize,
        /// One length per line
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::MakeWorld { dir, urls, scale } => fetch_world::write(&dir, urls, scale),
        Task::MakeImages { dir, count, scale } => data::write_images(&dir, count, scale),
        Task::MakePool { dir, shards, samples, images, captions, scale } => {
            let shape =
                data::PoolShape { num_shards: shards, samples_per_shard: samples, num_images: images };
            data::write_pool(&dir, shape, captions.as_deref(), scale)
        }
        Task::MakeLengths { file, count } => data::write_lengths(&file, count),
        Task::Read { digest, shards } => measured::read(&shards, digest).map(|figures| println!("{figures}")),
        Task::Scores { metric, dir } => measured::scores(&dir, &metric).map(|figures| println!("{figures}")),
        Task::Normalise { digest, size, repeats, dir } => {
            measured::normalise(&dir, size, repeats, digest).map(|figures| println!("{figures}"))
        }
        Task::Generate { model, prompts, images, threads, num_new_tokens } => {
            measured::generate(&model, &prompts, &images, threads, num_new_tokens)
                .map(|figures| println!("{figures}"))
        }
        Task::BinPacking { digest, capacity, repeats, file } => {
            measured::bin_packing(&file, capacity, repeats, digest).map(|figures| println!("{figures}"))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("oqvl-peers: {error:#}");
            ExitCode::FAILURE
        }
    }
}
