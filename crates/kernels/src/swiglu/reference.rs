//! SwiGLU on a CPU, in f32 and f64.

use crate::element::Element;

fn sigmoid<T: Element>(x: T) -> T {
    (T::one() + (-x).exponential()).recip()
}

/// Writes `gate sigmoid(gate) up` to `h`.
pub(crate) fn forward<T: Element>(gate: &[T], up: &[T], h: &mut [T]) {
    for ((h, gate), up) in h.iter_mut().zip(gate).zip(up) {
        *h = *gate * sigmoid(*gate) * *up;
    }
}

/// Writes the gradients of both from that of `h`.
pub(crate) fn backward<T: Element>(gate: &[T], up: &[T], dh: &[T], dgate: &mut [T], dup: &mut [T]) {
    let inputs = gate.iter().zip(up).zip(dh);
    for ((dgate, dup), ((gate, up), dh)) in dgate.iter_mut().zip(dup).zip(inputs) {
        let s = sigmoid(*gate);
        let silu = *gate * s;
        *dgate = *dh * *up * (s + silu * (T::one() - s));
        *dup = *dh * silu;
    }
}
