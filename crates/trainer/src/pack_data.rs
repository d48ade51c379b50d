//! Packs as training examples: ids from the plan, images from the shards it points into.

use crate::{ImageLoader, TrainError};
use oqvl_model::{Example, Prompt};
use oqvl_shard_io::{Pack, PackInfo, ShardIndex, read_plan};
use oqvl_text_prep::{IGNORE_INDEX, IMAGE_TOKEN_ID, fitting_len};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Ending of plan files.
const PLAN_SUFFIX: &str = ".plan.parquet";

/// All packs of a directory.
#[derive(Debug)]
pub struct PackData {
    /// What the packs were made for.
    pub info: PackInfo,
    packs: Vec<Pack>,
    shards: BTreeMap<String, (PathBuf, ShardIndex)>,
    images: ImageLoader,
}

impl PackData {
    /// Reads all plans of `dir` in name order; `work_dir` is where their `images_dir` starts. Images are decoded when
    /// they are asked for, to `image_size`.
    ///
    /// # Errors
    /// If there are no packs, they do not agree with each other, or a shard they point into cannot be opened.
    pub fn open(dir: &Path, work_dir: &Path, image_size: u32) -> Result<Self, TrainError> {
        let entries = std::fs::read_dir(dir).map_err(TrainError::io(dir))?;
        let mut plans: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.to_string_lossy().ends_with(PLAN_SUFFIX))
            .collect();
        plans.sort();
        let (mut all_info, mut packs): (Option<PackInfo>, Vec<Pack>) = (None, Vec::new());
        for path in plans {
            let (info, more) = read_plan(&path)?;
            packs.extend(more);
            match &all_info {
                None => all_info = Some(info),
                Some(first) if *first == info => {}
                Some(first) => {
                    let (found, expected) = (format!("{info:?}"), format!("{first:?} in other plans"));
                    return Err(TrainError::PackMismatch { path, found, expected });
                }
            }
        }
        let Some(info) = all_info.filter(|_| !packs.is_empty()) else {
            return Err(TrainError::NoData {
                path: dir.to_path_buf(),
                what: "no pack plans: run the packer first, with packer.output = \"plan\"",
            });
        };
        let mut shards = BTreeMap::new();
        for image in packs.iter().flat_map(|pack| &pack.images) {
            if !shards.contains_key(&image.shard) {
                let path = work_dir.join(&info.images_dir).join(&image.shard);
                let index = ShardIndex::open(&path)?;
                shards.insert(image.shard.clone(), (path, index));
            }
        }
        Ok(Self { info, packs, shards, images: ImageLoader::new(image_size) })
    }

    /// Number of packs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packs.len()
    }

    /// Whether there are none; `open` refuses that.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packs.is_empty()
    }

    /// Images so far that were no images; blank ones took their places.
    #[must_use]
    pub fn num_undecodable_images(&self) -> usize {
        self.images.num_undecodable()
    }

    /// One pack with its images decoded, cut to the `seq_len` it was packed for: an overlong document that the packer
    /// kept stands alone in its pack. Labels are the ids, except at images; nothing else is masked and documents see
    /// each other, as in the reference.
    ///
    /// # Errors
    /// If a shard cannot be read.
    pub fn example(&self, index: usize) -> Result<Example, TrainError> {
        let pack = &self.packs[index];
        let (seq_len, num_image_tokens) = (self.info.seq_len as usize, self.info.num_image_tokens as usize);
        let input_ids = &pack.input_ids[..fitting_len(&pack.input_ids, num_image_tokens, seq_len)];
        let num_images = input_ids.iter().filter(|&&id| id == IMAGE_TOKEN_ID).count();
        let mut images = Vec::with_capacity(num_images);
        for image in &pack.images[..num_images] {
            let (path, shard) = &self.shards[&image.shard];
            let bytes = shard.read(image.offset, image.num_bytes)?;
            images.push(self.images.load(&format!("{}, sample {}", path.display(), image.key), &bytes));
        }
        let labels =
            input_ids.iter().map(|&id| if id == IMAGE_TOKEN_ID { IGNORE_INDEX } else { id }).collect();
        Ok(Example { prompt: Prompt { input_ids: input_ids.to_vec(), images }, labels })
    }
}
