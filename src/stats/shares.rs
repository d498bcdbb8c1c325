//! 95 % intervals of shares and of differences of paired shares, by score tests: they are also valid for shares of 0 or 1 and
//! never have width 0. Counts may be fractional, as for an effective number of items.

/// Quantiles of the standard normal distribution: 97.5 % (two-sided test at 5 %) and 80 % (power).
pub(super) const Z_975: f64 = 1.959_963_984_540_054;
pub(super) const Z_80: f64 = 0.841_621_233_572_914_2;

/// Wilson's interval of a share (J. Am. Stat. Assoc. 22, 1927).
pub(super) fn wilson(n_right: f64, n: f64) -> [f64; 2] {
    let (p, z2) = (n_right / n, Z_975 * Z_975);
    let middle = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z_975 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).max(0.0).sqrt();
    // Prevents rounding from putting the share itself outside.
    [(middle - half).clamp(0.0, p), (middle + half).clamp(p, 1.0)]
}

/// Tango's interval of the difference of two paired shares (Statistics in Medicine 17, 1998): the differences that the score test
/// does not reject, given how many of `n` items were lost and how many gained.
pub(super) fn tango(lost: f64, gained: f64, n: f64) -> [f64; 2] {
    let score = |delta: f64| {
        // The maximum-likelihood share of lost items if the difference is `delta`.
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

/// The 97.5 % quantile of Student's t: exact for 1 and 2 degrees of freedom, to 0.3 % from 3 on by the expansion around the normal
/// quantile (Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5).
pub(super) fn student_t_975(degrees: u64) -> f64 {
    let (n, x) = (degrees as f64, Z_975);
    match degrees {
        0 => f64::INFINITY,
        1 => 12.706_204_736_432_095,
        2 => 4.302_652_729_911_275,
        _ => {
            x + (x.powi(3) + x) / (4.0 * n)
                + (5.0 * x.powi(5) + 16.0 * x.powi(3) + 3.0 * x) / (96.0 * n * n)
                + (3.0 * x.powi(7) + 19.0 * x.powi(5) + 17.0 * x.powi(3) - 15.0 * x) / (384.0 * n.powi(3))
                + (79.0 * x.powi(9) + 776.0 * x.powi(7) + 1482.0 * x.powi(5) - 1920.0 * x.powi(3) - 945.0 * x)
                    / (92_160.0 * n.powi(4))
        }
    }
}
