//! AdamW and the norm before it, against the reference in f64.

use half::bf16;
use oqvl_emulation::{BlockOrder, Buffer, Emulation};
use oqvl_kernels::adamw::launch::{Buffers, Control, Decay, gradient_norm, partials_len, update};
use oqvl_kernels::adamw::{AdamW, CONTROL_LEN, DecayRanges, reference};
use rand::{Rng as _, SeedableRng as _};

const SETTINGS: AdamW = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, max_norm: 1.0 };
const LR: f64 = 5e-3;
const EMA: f32 = 0.75;

fn emulation() -> Option<Emulation> {
    Emulation::from_env().unwrap()
}

fn random(len: usize, seed: u64, bound: f32) -> Buffer<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-bound..bound)).collect()
}

/// Everything a run of some steps leaves.
struct State {
    w: Buffer<f32>,
    m: Buffer<f32>,
    v: Buffer<f32>,
    copy: Buffer<bf16>,
    ema: Buffer<f32>,
    control: Buffer<f32>,
    step: Buffer<i32>,
}

impl State {
    fn new(len: usize) -> Self {
        let w = random(len, 1, 1.0);
        let zeros = || (0..len).map(|_| 0.0).collect();
        let (control, step) = (Buffer::poisoned(CONTROL_LEN), [0].into_iter().collect());
        Self { ema: w.clone(), w, m: zeros(), v: zeros(), copy: Buffer::poisoned(len), control, step }
    }

    /// One step of the kernels.
    fn step(&mut self, on: &Emulation, ranges: &DecayRanges, gradient: &[f32], scale: Option<f32>) {
        let mut grad = Buffer::from(gradient);
        let scale: Option<Buffer<f32>> = scale.map(|scale| [scale].into_iter().collect());
        let mut partials = Buffer::poisoned(partials_len(grad.len()));
        let mut control = Control { numbers: on.write(&mut self.control), step: on.write(&mut self.step) };
        let scale = scale.as_ref().map(|scale| on.read(scale));
        let sums = on.write(&mut partials);
        gradient_norm(on, &SETTINGS, on.read(gradient), scale, sums, &mut control).unwrap();
        let boundaries: Buffer<i64> = ranges.boundaries().iter().copied().collect();
        let decays: Buffer<f32> = ranges.decays().iter().copied().collect();
        let buffers = Buffers {
            w: on.write(&mut self.w),
            grad: on.write(&mut grad),
            m: on.write(&mut self.m),
            v: on.write(&mut self.v),
            copy: Some(on.write(&mut self.copy)),
            ema: Some((on.write(&mut self.ema), EMA)),
        };
        let decay = Decay { boundaries: on.read(&boundaries), decays: on.read(&decays) };
        update(on, &SETTINGS, LR, buffers, ranges, decay, &control).unwrap();
        assert!(grad.iter().all(|g| g.to_bits() == 0), "gradients become 0");
    }
}

fn check(on: &Emulation, ranges: &DecayRanges, scale: Option<f32>) -> State {
    let len = ranges.len();
    let mut state = State::new(len);
    let wide = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
    let (mut w, mut m, mut v) = (wide(&state.w), vec![0.0; len], vec![0.0; len]);
    let (mut ema, mut step) = (w.clone(), 0);
    // The first is clipped, the others are not.
    for (turn, bound) in [10.0, 1e-3, 1e-4].into_iter().enumerate() {
        let gradient = random(len, 7 + turn as u64, bound);
        state.step(on, ranges, &gradient, scale);
        let mut grad = wide(&gradient);
        let control =
            reference::gradient_norm(&SETTINGS, &grad, f64::from(scale.unwrap_or(1.0)), &mut step).unwrap();
        for (found, expected) in state.control.iter().zip(control) {
            let error = (f64::from(*found) - expected).abs();
            assert!(error <= 1e-5 * expected.abs(), "control {:?} is not {control:?}", state.control);
        }
        let buffers = reference::Buffers {
            w: &mut w,
            grad: &mut grad,
            m: &mut m,
            v: &mut v,
            ema: Some((&mut ema, f64::from(EMA))),
        };
        reference::update(&SETTINGS, LR, buffers, ranges, &control).unwrap();
    }
    assert_eq!(state.step[..], [3]);
    for (name, found, expected) in
        [("w", &state.w, &w), ("m", &state.m, &m), ("v", &state.v, &v), ("ema", &state.ema, &ema)]
    {
        for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
            let error = (f64::from(*found) - expected).abs();
            let is_moment = matches!(name, "m" | "v");
            let bound = if is_moment { 2e-5 * expected.abs() + 1e-9 } else { 1e-6 * (1.0 + expected.abs()) };
            assert!(error <= bound, "{name}[{index}]: {found} is not {expected}");
        }
    }
    for (copy, w) in state.copy.iter().zip(state.w.iter()) {
        assert_eq!(copy.to_bits(), bf16::from_f32(*w).to_bits());
    }
    state
}

#[test]
fn adamw_of_every_edge_length() {
    let Some(on) = emulation() else { return };
    for len in [8, 16, 2040, 2048, 2056, 65528, 65536, 65544] {
        check(&on, &DecayRanges::new(&[(len, 0.1)]).unwrap(), None);
    }
}

#[test]
fn adamw_decays_by_range() {
    let Some(on) = emulation() else { return };
    let ranges =
        DecayRanges::new(&[(8, 0.5), (24, 0.0), (0, 3.0), (4096, 0.1), (8, 0.0), (16, 0.2)]).unwrap();
    check(&on, &ranges, Some(0.25));
    // The decay alone moves weights whose gradient is 0.
    let mut state = State::new(ranges.len());
    let before = state.w.clone();
    state.step(&on, &ranges, &vec![0.0; ranges.len()], None);
    let kept = |at: usize| f64::from(state.w[at] / before[at]);
    for (at, decay) in
        [(0, 0.5), (7, 0.5), (8, 0.0), (31, 0.0), (32, 0.1), (4127, 0.1), (4128, 0.0), (4136, 0.2)]
    {
        assert!((kept(at) - (1.0 - LR * decay)).abs() < 1e-6, "weight {at} kept {}", kept(at));
    }
}

#[test]
fn adamw_without_weights_does_nothing() {
    let Some(on) = emulation() else { return };
    let mut state = State::new(0);
    state.step(&on, &DecayRanges::new(&[]).unwrap(), &[], None);
    assert_eq!((state.control[0], state.step[0]), (0.0, 1));
}

#[test]
fn adamw_skips_what_is_not_finite() {
    let Some(on) = emulation() else { return };
    let ranges = DecayRanges::new(&[(70_000, 0.1)]).unwrap();
    for bad in [f32::NAN, f32::INFINITY, -1e30] {
        let mut state = State::new(ranges.len());
        let before = state.w.clone();
        let mut gradient = random(ranges.len(), 3, 1.0);
        gradient[69_999] = bad;
        state.step(&on, &ranges, &gradient, None);
        assert_eq!((state.control[2], state.step[0]), (1.0, 0));
        assert_eq!(state.w[..], before[..]);
        assert!(state.m.iter().chain(state.v.iter()).all(|moment| *moment == 0.0));
        assert!(state.copy.iter().all(|copy| copy.is_nan()), "the copy is not written either");
    }
}

#[test]
fn adamw_is_the_same_in_any_order_of_blocks() {
    let ranges = DecayRanges::new(&[(131_080, 0.1)]).unwrap();
    let runs = [BlockOrder::Forward, BlockOrder::Shuffled(3)].into_iter().filter_map(|order| {
        let on = emulation()?.with_order(order);
        let state = check(&on, &ranges, None);
        Some((state.w.to_vec(), state.control.to_vec()))
    });
    let runs: Vec<_> = runs.collect();
    assert!(runs.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn adamw_refuses_what_it_cannot_do() {
    let Some(on) = emulation() else { return };
    let refusal = |ranges: &[(usize, f32)], lens: [usize; 4], lr: f64| {
        let ranges = DecayRanges::new(ranges).unwrap();
        let [mut w, mut grad, mut m, mut v] = lens.map(Buffer::<f32>::poisoned);
        let (mut numbers, mut step) = (Buffer::poisoned(CONTROL_LEN), Buffer::poisoned(1));
        let (boundaries, decays) =
            (Buffer::poisoned(ranges.num_ranges() + 1), Buffer::poisoned(ranges.num_ranges()));
        let control = Control { numbers: on.write(&mut numbers), step: on.write(&mut step) };
        let buffers = Buffers {
            w: on.write(&mut w),
            grad: on.write(&mut grad),
            m: on.write(&mut m),
            v: on.write(&mut v),
            copy: None,
            ema: None,
        };
        let decay = Decay { boundaries: on.read(&boundaries), decays: on.read(&decays) };
        update(&on, &SETTINGS, lr, buffers, &ranges, decay, &control).unwrap_err().to_string()
    };
    for (error, expected) in [
        (refusal(&[(8, 0.0)], [16; 4], 0.1), "16 weights, ranges over 8"),
        (refusal(&[(16, 0.0)], [16, 8, 16, 16], 0.1), "grad has 8 elements"),
        (refusal(&[(16, 0.0)], [16; 4], f64::NAN), "learning rate of NaN"),
    ] {
        assert!(error.contains(expected), "{error}");
    }
}
