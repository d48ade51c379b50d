//! The plan of the web pool: what stands under each URL and what is the matter with it.

use super::region;
use crate::config::{SyntheticConfig, share_of};
use crate::encode::PictureFormat;
use crate::pair::{Pair, PairClass, SceneSource};
use crate::records::{Fault, TruthRecord, UrlRecord};
use crate::scene::{Canvas, Split, weighted_index};
use oqvl_stage::{Rng, stream};
use rand::Rng as _;
use rand::seq::{IndexedRandom, SliceRandom};

/// One URL of the pool.
#[derive(Debug, Clone)]
pub(super) struct PlannedUrl {
    pub(super) uid: String,
    pub(super) host: &'static str,
    /// Path and query.
    pub(super) target: String,
    pub(super) source: SceneSource,
    pub(super) canvas: Canvas,
    pub(super) format: PictureFormat,
    pub(super) pair: Pair,
    pub(super) fault: Option<Fault>,
    /// Index of the URL whose bytes are served.
    pub(super) duplicate_of: Option<usize>,
    /// Index of the URL whose scene is shown again.
    pub(super) near_duplicate_of: Option<usize>,
    /// Whether the URL redirects to the image.
    pub(super) redirect: Redirect,
}

/// Whether a URL leads to its image by a redirect. That is no fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Redirect {
    Direct,
    Once,
}

/// The virtual hosts.
pub(super) const HOSTS: [&str; 4] =
    ["a.micro-world.test", "b.micro-world.test", "c.micro-world.test", "d.micro-world.test"];
const FOLDERS: [&str; 4] = ["images", "media", "photos", "static/img"];
/// Percent of the images that are PNG, JPEG, WebP, GIF and BMP.
const FORMAT_WEIGHTS: [u32; 5] = [48, 40, 5, 4, 3];
/// Sizes of the drawings and their weights.
const SIZES: [(u32, u32); 6] = [(96, 96), (128, 128), (96, 128), (128, 96), (160, 160), (192, 192)];
const SIZE_WEIGHTS: [u32; 6] = [66, 12, 6, 6, 6, 4];
const REDIRECT_SHARE: f64 = 0.01;
const QUERY_SHARE: f64 = 0.03;
const NO_EXTENSION_SHARE: f64 = 0.02;

/// What a URL shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// A scene of its own.
    Original(PairClass),
    NearDuplicate,
    Duplicate,
}

impl PlannedUrl {
    pub(super) fn url(&self) -> String {
        format!("http://{}{}", self.host, self.target)
    }

    pub(super) fn url_record(&self) -> UrlRecord {
        UrlRecord { url: self.url(), caption: self.pair.caption.clone(), uid: self.uid.clone() }
    }

    pub(super) fn truth_record(&self, plan: &[PlannedUrl]) -> TruthRecord {
        TruthRecord {
            uid: self.uid.clone(),
            url: self.url(),
            pair: self.pair.class,
            fault: self.fault.clone(),
            duplicate_of: self.duplicate_of.map(|index| plan[index].uid.clone()),
            near_duplicate_of: self.near_duplicate_of.map(|index| plan[index].uid.clone()),
            scene: self.source.index,
            scores: self.pair.scores,
        }
    }
}

/// Plans the pool. The shares are met exactly, up to rounding.
pub(super) fn plan(config: &SyntheticConfig, seed: u64) -> Vec<PlannedUrl> {
    let mut rng = stream(seed, "micro-world/pool", 0, 0, 0);
    let roles = roles(config, &mut rng);
    let mut plan: Vec<PlannedUrl> =
        roles.iter().enumerate().map(|(index, &role)| plan_original(seed, index, role)).collect();
    let originals = repeat(&mut plan, &roles, seed, &mut rng);
    spread_faults(&mut plan, &originals, config.urls_per_fault(), &mut rng);
    plan
}

fn roles(config: &SyntheticConfig, rng: &mut Rng) -> Vec<Role> {
    let mut roles = Vec::with_capacity(config.num_urls);
    for (role, share) in [
        (Role::Original(PairClass::Mismatched), config.mismatched_share),
        (Role::Original(PairClass::Subtle), config.subtle_share),
        (Role::Original(PairClass::Vague), config.vague_share),
        (Role::Original(PairClass::Boilerplate), config.boilerplate_share),
        (Role::NearDuplicate, config.near_duplicate_share),
        (Role::Duplicate, config.duplicate_share),
    ] {
        roles.extend(std::iter::repeat_n(role, share_of(config.num_urls, share)));
    }
    // At least one clean original, which duplicates can repeat.
    roles.truncate(config.num_urls.saturating_sub(1));
    roles.resize(config.num_urls, Role::Original(PairClass::Clean));
    roles.shuffle(rng);
    roles
}

/// A URL with a scene of its own; what repeats another is put right by [`repeat`].
fn plan_original(seed: u64, index: usize, role: Role) -> PlannedUrl {
    let mut rng = stream(seed, "micro-world/url", 0, 0, index as u64);
    let (high, low) = (rng.random::<u64>(), rng.random::<u64>());
    let source = SceneSource { seed, split: Split::Web, index: region(0) + index as u64 };
    let class = if let Role::Original(class) = role { class } else { PairClass::Clean };
    let (width, height) = SIZES[weighted_index(&SIZE_WEIGHTS, &mut rng)];
    let format = PictureFormat::ALL[weighted_index(&FORMAT_WEIGHTS, &mut rng)];
    let pair = Pair::compose(class, source, &source.scene(), &mut rng);
    let redirect = if rng.random_bool(REDIRECT_SHARE) { Redirect::Once } else { Redirect::Direct };
    PlannedUrl {
        uid: format!("{high:016x}{low:016x}"),
        host: HOSTS.choose(&mut rng).expect("there are hosts"),
        target: target(high, format, &mut rng),
        source,
        canvas: Canvas::sized(width, height),
        format,
        pair,
        fault: None,
        duplicate_of: None,
        near_duplicate_of: None,
        redirect,
    }
}

fn target(number: u64, format: PictureFormat, rng: &mut Rng) -> String {
    let folder = FOLDERS.choose(rng).expect("there are folders");
    let mut target = format!("/{folder}/{number:016x}");
    if !rng.random_bool(NO_EXTENSION_SHARE) {
        target += &format!(".{}", format.extension());
    }
    if rng.random_bool(QUERY_SHARE) {
        target += "?size=full&v=2";
    }
    target
}

/// Makes duplicates and near-duplicates of clean originals; returns the indices of those originals.
fn repeat(plan: &mut [PlannedUrl], roles: &[Role], seed: u64, rng: &mut Rng) -> Vec<usize> {
    let places = |wanted: Role| (0..roles.len()).filter(move |&index| roles[index] == wanted);
    let mut clean: Vec<usize> = places(Role::Original(PairClass::Clean)).collect();
    clean.shuffle(rng);
    let mut originals = clean.iter().copied().cycle();
    let mut used = Vec::new();
    for index in places(Role::NearDuplicate) {
        let Some(original) = originals.next() else { break };
        let mut rng = stream(seed, "micro-world/near-duplicate", 0, 0, index as u64);
        let first = plan[original].clone();
        let copy = &mut plan[index];
        copy.source = first.source;
        let scene = first.source.scene();
        let style = first.pair.style.expect("clean captions have a style").random_other(&mut rng);
        copy.pair = Pair::clean(&scene, style, &mut rng);
        let step = |rng: &mut Rng| *[-1.5f32, -1.0, 1.0, 1.5].choose(rng).expect("there are steps");
        copy.canvas = Canvas { shift: [step(&mut rng), step(&mut rng)], ..first.canvas };
        copy.near_duplicate_of = Some(original);
        used.push(original);
    }
    for index in places(Role::Duplicate) {
        let Some(original) = originals.next() else { break };
        let first = plan[original].clone();
        let copy = &mut plan[index];
        copy.source = first.source;
        copy.pair = first.pair;
        copy.canvas = first.canvas;
        copy.format = first.format;
        copy.fault = Some(Fault::DuplicateContent);
        copy.duplicate_of = Some(original);
        used.push(original);
    }
    used
}

/// Gives every fault but the duplicates to as many URLs, none of which another URL repeats.
fn spread_faults(plan: &mut [PlannedUrl], originals: &[usize], urls_per_fault: usize, rng: &mut Rng) {
    let kinds: Vec<Fault> =
        Fault::SYNTHETIC.into_iter().filter(|fault| *fault != Fault::DuplicateContent).collect();
    let mut free: Vec<usize> =
        (0..plan.len()).filter(|index| plan[*index].fault.is_none() && !originals.contains(index)).collect();
    free.shuffle(rng);
    let faults = kinds.iter().cycle().take(kinds.len() * urls_per_fault);
    for (index, fault) in free.into_iter().zip(faults) {
        plan[index].fault = Some(fault.clone());
        plan[index].redirect = Redirect::Direct;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::WorldConfig;
    use oqvl_stage::StageConfig as _;
    use std::collections::BTreeSet;

    fn config(num_urls: usize) -> SyntheticConfig {
        SyntheticConfig { num_urls, ..crate::tests::small_config() }
    }

    #[test]
    fn shares_are_met_and_references_hold() {
        let config = config(2000);
        WorldConfig::Synthetic(config.clone()).validate().unwrap();
        let plan = plan(&config, 7);
        assert_eq!(plan.len(), 2000);
        let of = |class| plan.iter().filter(|url| url.pair.class == class).count();
        assert_eq!((of(PairClass::Mismatched), of(PairClass::Subtle)), (280, 40));
        assert_eq!((of(PairClass::Vague), of(PairClass::Boilerplate)), (160, 200));
        for fault in Fault::SYNTHETIC {
            let expected = if fault == Fault::DuplicateContent { 40 } else { 8 };
            assert_eq!(
                plan.iter().filter(|url| url.fault.as_ref() == Some(&fault)).count(),
                expected,
                "{fault}"
            );
        }
        assert_eq!(plan.iter().map(PlannedUrl::url).collect::<BTreeSet<_>>().len(), 2000);
        assert_eq!(plan.iter().map(|url| &url.uid).collect::<BTreeSet<_>>().len(), 2000);
        for url in &plan {
            for original in [url.duplicate_of, url.near_duplicate_of].into_iter().flatten() {
                let original = &plan[original];
                assert_eq!((original.fault.clone(), original.pair.class), (None, PairClass::Clean));
                assert_eq!(original.source.index, url.source.index);
                assert!(original.duplicate_of.is_none() && original.near_duplicate_of.is_none());
            }
            let captions_differ =
                url.near_duplicate_of.is_some_and(|first| plan[first].pair.caption != url.pair.caption);
            assert_eq!(url.near_duplicate_of.is_some(), captions_differ);
        }
    }

    #[test]
    fn every_fault_comes_twice_in_the_smallest_world() {
        let plan = plan(&config(64), 7);
        for fault in Fault::SYNTHETIC.iter().filter(|fault| **fault != Fault::DuplicateContent) {
            assert_eq!(plan.iter().filter(|url| url.fault.as_ref() == Some(fault)).count(), 2, "{fault}");
        }
    }

    #[test]
    fn worlds_may_be_tiny_without_faults() {
        for num_urls in [0, 1, 2, 3] {
            let config = SyntheticConfig { fault_share: 0.0, ..config(num_urls) };
            WorldConfig::Synthetic(config.clone()).validate().unwrap();
            assert_eq!(plan(&config, 1).len(), num_urls);
        }
    }
}
