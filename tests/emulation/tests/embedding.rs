//! Embeddings with visual features among them, and their gradients, against plain loops.

use half::bf16;
use oqvl_emulation::{BlockOrder, Buffer, Emulation};
use oqvl_kernels::embedding::launch::{DeviceBuckets, Embeddings, backward, forward};
use oqvl_kernels::embedding::{Buckets, reference, visual_indices, visual_source};
use oqvl_kernels::gather_rows::launch::gather_rows;
use proptest::prelude::*;
use rand::SeedableRng as _;

fn emulation() -> Option<Emulation> {
    Emulation::from_env().unwrap()
}

fn random(len: usize, seed: u64) -> Buffer<bf16> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| bf16::from_f32(rng.random_range(-2.0..2.0))).collect()
}

fn widen(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|x| x.to_f64()).collect()
}

const PADDING: i32 = 0;

struct Case {
    hidden: usize,
    table: Buffer<bf16>,
    visual: Buffer<bf16>,
    sources: Buffer<i32>,
    dy: Buffer<bf16>,
    /// What the gradient of the table was before.
    before: Buffer<f32>,
}

struct Found {
    to: Buffer<bf16>,
    dtable: Buffer<f32>,
    dvisual: Buffer<bf16>,
}

impl Case {
    fn new(hidden: usize, vocab: usize, visual_rows: usize, sources: Vec<i32>, seed: u64) -> Self {
        Self {
            hidden,
            table: random(vocab * hidden, seed),
            visual: random(visual_rows * hidden, seed + 1),
            dy: random(sources.len() * hidden, seed + 2),
            before: random(vocab * hidden, seed + 3).iter().map(|x| x.to_f32()).collect(),
            sources: sources.into_iter().collect(),
        }
    }

    /// Tokens in any order, of which some are padding, and every visual feature but the first in between.
    fn mixed(hidden: usize, vocab: usize, visual_rows: usize, tokens: usize, seed: u64) -> Self {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut sources: Vec<i32> = (0..tokens).map(|_| rng.random_range(0..vocab as i32)).collect();
        for row in 1..visual_rows {
            let at = rng.random_range(0..=sources.len());
            sources.insert(at, visual_source(row));
        }
        Self::new(hidden, vocab, visual_rows, sources, seed)
    }

    fn run(&self, on: &Emulation) -> Found {
        let mut found = Found {
            to: Buffer::poisoned(self.dy.len()),
            dtable: self.before.clone(),
            dvisual: Buffer::poisoned(self.visual.len()),
        };
        let from = Embeddings { table: on.read(&self.table), visual: on.read(&self.visual) };
        forward(on, self.hidden, from, on.read(&self.sources), on.write(&mut found.to)).unwrap();
        let sorted = Buckets::new(&self.sources, Some(PADDING));
        // Of exactly their lengths, so that the sanitizer sees every step beyond.
        let [ids, starts, rows] = [sorted.ids(), sorted.starts(), sorted.rows()].map(Buffer::from);
        let buckets = DeviceBuckets { ids: on.read(&ids), starts: on.read(&starts), rows: on.read(&rows) };
        backward(on, self.hidden, on.read(&self.dy), buckets, on.write(&mut found.dtable)).unwrap();
        let indices = visual_indices(&self.sources, self.visual.len() / self.hidden).unwrap();
        let indices: Buffer<i32> = indices.into_iter().collect();
        let dvisual = on.write(&mut found.dvisual);
        gather_rows(on, self.hidden, on.read(&self.dy), on.read(&indices), dvisual).unwrap();
        found
    }

    #[track_caller]
    fn check(&self, on: &Emulation) {
        let Self { hidden, table, visual, sources, dy, before } = self;
        let found = self.run(on);
        let mut expected = vec![f64::NAN; found.to.len()];
        reference::forward(&widen(table), &widen(visual), *hidden, sources, &mut expected).unwrap();
        assert_eq!(widen(&found.to), expected);
        // Plain loops, row by row and number by number.
        let mut dtable: Vec<f64> = before.iter().map(|x| f64::from(*x)).collect();
        let mut dvisual = vec![0.0; visual.len()];
        for (row, source) in sources.iter().enumerate() {
            for column in 0..*hidden {
                let value = dy[row * hidden + column].to_f64();
                if *source < 0 {
                    dvisual[(-1 - source) as usize * hidden + column] = value;
                } else if *source != PADDING {
                    dtable[*source as usize * hidden + column] += value;
                }
            }
        }
        assert_eq!(widen(&found.dvisual), dvisual);
        let mut by_reference: Vec<f64> = before.iter().map(|x| f64::from(*x)).collect();
        let buckets = Buckets::new(sources, Some(PADDING));
        reference::backward(&widen(dy), *hidden, (&buckets).into(), &mut by_reference).unwrap();
        assert_eq!(by_reference, dtable);
        for (index, (found, expected)) in found.dtable.iter().zip(dtable).enumerate() {
            let error = (f64::from(*found) - expected).abs();
            let bound = 1e-6 * (1.0 + sources.len() as f64);
            assert!(error <= bound, "dtable[{index}]: {found} is not {expected}");
        }
    }
}

#[test]
fn embedding_of_every_number_of_rows() {
    let Some(on) = emulation() else { return };
    for tokens in [0, 1, 7, 8, 9, 63, 64, 65, 300] {
        Case::mixed(24, 11, 5, tokens, tokens as u64).check(&on);
        Case::mixed(24, 11, 0, tokens, tokens as u64).check(&on);
    }
    Case::new(24, 0, 3, vec![-1, -3], 1).check(&on);
}

/// Around sixteen bytes, the tiles of columns, and the width of the model.
#[test]
fn embedding_of_every_width() {
    let Some(on) = emulation() else { return };
    for hidden in [1, 4, 7, 8, 9, 12, 248, 255, 256, 257, 264, 512, 896, 1536, 1537] {
        Case::mixed(hidden, 5, 4, 20, hidden as u64).check(&on);
    }
}

/// Buckets of no more rows than a block has warps, and of many more.
#[test]
fn embedding_of_one_token_alone() {
    let Some(on) = emulation() else { return };
    for rows in [1, 7, 8, 9, 33, 4096] {
        Case::new(16, 3, 0, vec![2; rows], 1).check(&on);
    }
    let case = Case::new(16, 3, 0, vec![PADDING; 40], 2);
    assert_eq!(case.run(&on).dtable[..], case.before[..]);
}

#[test]
fn embedding_of_visual_features_alone() {
    let Some(on) = emulation() else { return };
    let case = Case::new(40, 3, 7, (0..7).map(visual_source).collect(), 3);
    case.check(&on);
    let found = case.run(&on);
    assert_eq!((&found.to[..], &found.dvisual[..]), (&case.visual[..], &case.dy[..]));
}

#[test]
fn embedding_is_deterministic() {
    let case = Case::mixed(264, 4, 6, 200, 4);
    let runs = [BlockOrder::Forward, BlockOrder::Reverse, BlockOrder::Shuffled(7)];
    let mut runs = runs.into_iter().filter_map(|order| {
        let found = case.run(&emulation()?.with_order(order));
        let dtable: Vec<u32> = found.dtable.iter().map(|x| x.to_bits()).collect();
        Some((found.to.to_vec(), dtable, found.dvisual.to_vec()))
    });
    let Some(first) = runs.next() else { return };
    assert!(runs.all(|run| run == first));
}

/// What the host did not check takes a row that is there, or none; nothing else is touched.
#[test]
fn embedding_stays_within_its_tables() {
    let Some(on) = emulation() else { return };
    let mut case = Case::new(16, 3, 2, vec![0; 4], 5);
    case.sources.copy_from_slice(&[3, i32::MAX, -3, i32::MIN]);
    let from = Embeddings { table: on.read(&case.table), visual: on.read(&case.visual) };
    let mut to = Buffer::poisoned(4 * 16);
    forward(&on, 16, from, on.read(&case.sources), on.write(&mut to)).unwrap();
    assert_eq!((&to[..16], &to[16..32]), (&case.table[32..], &case.table[32..]));
    assert_eq!((&to[32..48], &to[48..]), (&case.visual[16..], &case.visual[16..]));
    let nothing = Buffer::poisoned(0);
    let from = Embeddings { table: on.read(&nothing), visual: on.read(&nothing) };
    forward(&on, 16, from, on.read(&case.sources), on.write(&mut to)).unwrap();
    assert!(to.iter().all(|x| x.to_bits() == 0));

    // Two tokens that are not there, one whose rows are not, one whose list ends beyond the list.
    let cases: [[&[i32]; 3]; 3] = [
        [&[3, -1], &[0, 1, 2], &[0, 1]],
        [&[1], &[0, 3], &[4, -1, i32::MAX]],
        [&[1], &[-5, i32::MIN], &[0, 1]],
    ];
    for lists in cases {
        let [ids, starts, rows] = lists.map(Buffer::from);
        let buckets = DeviceBuckets { ids: on.read(&ids), starts: on.read(&starts), rows: on.read(&rows) };
        let mut dtable = case.before.clone();
        backward(&on, 16, on.read(&case.dy), buckets, on.write(&mut dtable)).unwrap();
        assert_eq!(dtable[..], case.before[..]);
    }
    let [ids, starts, rows] = [&[1][..], &[i32::MIN, i32::MAX], &[0]].map(Buffer::from);
    let buckets = DeviceBuckets { ids: on.read(&ids), starts: on.read(&starts), rows: on.read(&rows) };
    let mut dtable = case.before.clone();
    backward(&on, 16, on.read(&case.dy), buckets, on.write(&mut dtable)).unwrap();
    for column in 0..16 {
        assert_eq!(dtable[16 + column], case.before[16 + column] + case.dy[column].to_f32());
    }
}

#[test]
fn embedding_refuses_what_it_cannot_do() {
    let Some(on) = emulation() else { return };
    let refusal = |table: usize, visual: usize, rows: usize, to: usize| {
        let (table, visual) = (Buffer::poisoned(table), Buffer::poisoned(visual));
        let (sources, mut to) = (Buffer::poisoned(rows), Buffer::poisoned(to));
        let from = Embeddings { table: on.read(&table), visual: on.read(&visual) };
        forward(&on, 16, from, on.read(&sources), on.write(&mut to)).unwrap_err().to_string()
    };
    assert!(refusal(33, 16, 1, 16).contains("the table has 33 elements"));
    assert!(refusal(32, 15, 1, 16).contains("the visual matrix has 15 elements"));
    assert!(refusal(32, 16, 2, 16).contains("the output has 16 elements"));
    let refusal = |dy: usize, ids: usize, starts: usize, dtable: usize| {
        let (dy, rows) = (Buffer::poisoned(dy), Buffer::poisoned(1));
        let (ids, starts) = (Buffer::poisoned(ids), Buffer::poisoned(starts));
        let mut dtable = Buffer::poisoned(dtable);
        let buckets = DeviceBuckets { ids: on.read(&ids), starts: on.read(&starts), rows: on.read(&rows) };
        backward(&on, 16, on.read(&dy), buckets, on.write(&mut dtable)).unwrap_err().to_string()
    };
    assert!(refusal(17, 1, 2, 16).contains("dy has 17 elements"));
    assert!(refusal(16, 1, 2, 17).contains("the gradient of the table has 17 elements"));
    assert!(refusal(16, 1, 1, 16).contains("1 buckets have 1 starts"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn embedding_of_random_sizes(
        hidden in 1usize..600,
        vocab in 1usize..20,
        visual_rows in 0usize..10,
        tokens in 0usize..60,
        seed in 0u64..1000,
    ) {
        let Some(on) = emulation() else { return Ok(()) };
        Case::mixed(hidden, vocab, visual_rows, tokens, seed).check(&on);
    }
}
