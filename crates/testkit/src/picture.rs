//! Pictures that look like something: smooth, and different from each other.

/// A soft pattern of random patches that differs from seed to seed: the RGB bytes of `width` by `height` pixels, row by
/// row. The same seed gives the same picture at every size.
#[must_use]
pub fn picture(seed: u32, width: u32, height: u32) -> Vec<u8> {
    let level = |channel: u32, u: u32, v: u32| {
        let bits = (((seed * 31 + channel) * 31 + u) * 31 + v).wrapping_mul(0x9e37_79b1);
        f64::from((bits ^ bits >> 15).wrapping_mul(0x85eb_ca6b) >> 24)
    };
    let value = |x: u32, y: u32, channel: u32| {
        let (u, v) = ((f64::from(x) + 0.5) / f64::from(width), (f64::from(y) + 0.5) / f64::from(height));
        let (u, v) = (8.0 * u, 8.0 * v);
        let (left, top, right, bottom) = (u as u32, v as u32, u as u32 + 1, v as u32 + 1);
        let (p, q) = (u.fract(), v.fract());
        let upper = (1.0 - p) * level(channel, left, top) + p * level(channel, right, top);
        let lower = (1.0 - p) * level(channel, left, bottom) + p * level(channel, right, bottom);
        ((1.0 - q) * upper + q * lower) as u8
    };
    (0..height)
        .flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |channel| value(x, y, channel))))
        .collect()
}
