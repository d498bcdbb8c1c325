//! 95 % intervals of shares and of differences of paired shares, by score tests: they hold where a share is 0 or 1, too, and are never
//! of width 0. Counts may be fractions: those of an effective number of items.

/// Quantiles of the standard normal distribution: 97.5 % (two-sided test at 5 %) and 80 % (power).
pub(super) const Z_975: f64 = 1.959_963_984_540_054;
pub(super) const Z_80: f64 = 0.841_621_233_572_914_2;

/// Wilson's interval of a share (J. Am. Stat. Assoc. 22, 1927).
pub(super) fn wilson(n_right: f64, n: f64) -> [f64; 2] {
    let (p, z2) = (n_right / n, Z_975 * Z_975);
    let middle = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z_975 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).max(0.0).sqrt();
    // Rounding must not put the share itself outside.
    [(middle - half).clamp(0.0, p), (middle + half).clamp(p, 1.0)]
}

/// Tango's interval of the difference of two paired shares (Statistics in Medicine 17, 1998): the differences that the score test
/// does not refuse, given how many of `n` items were lost and how many gained.
pub(super) fn tango(lost: f64, gained: f64, n: f64) -> [f64; 2] {
    let score = |delta: f64| {
        // The share that is lost under `delta`, by maximum likelihood.
        let b = -gained - lost + (2.0 * n - gained + lost) * delta;
        let c = -lost * delta * (1.0 - delta);
        let share_lost = ((b * b - 8.0 * n * c).max(0.0).sqrt() - b) / (4.0 * n);
        let variance = n * (2.0 * share_lost + delta * (1.0 - delta));
        let distance = gained - lost - n * delta;
        if distance == 0.0 { 0.0 } else { distance / variance.max(0.0).sqrt() }
    };
    let value = (gained - lost) / n;
    let end = |bound: f64, z: f64| {
        let (mut inside, mut outside) = (value, bound);
        for _ in 0..200 {
            let middle = 0.5 * (inside + outside);
            if score(middle) * z.signum() < z.abs() { inside = middle } else { outside = middle }
        }
        inside
    };
    [end(-1.0, Z_975), end(1.0, -Z_975)]
}
