//! Draws the figures of a training run from metrics.jsonl.

use std::path::Path;

use crate::error::{Context, Result};
use crate::jobs::work::MAPS_FOLDER;
use crate::maps::training::{Curve, Drift, Dynamics, Losses, Run, draw_drift, draw_dynamics, draw_losses};
use crate::train::metrics::{Group, Standing, StepMetrics};

/// Draws `maps/dynamics.png`, `loss.png` and `drift.png`. `before` are the base model's measurements.
pub(super) fn draw(out: &Path, metrics: &[StepMetrics], before: &Standing, thresholds: &str, run: &Run) -> Result<()> {
    let folder = out.join(MAPS_FOLDER);
    std::fs::create_dir_all(&folder).context_at(&folder, "cannot create the folder for figures")?;
    let curve = |f: &dyn Fn(&StepMetrics) -> Option<f64>| -> Curve {
        metrics.iter().filter_map(|metrics| Some((metrics.step, f(metrics)?))).collect()
    };
    let from_base = |f: &dyn Fn(&Standing) -> Option<f64>| -> Curve {
        let later = curve(&|metrics| f(&metrics.standing));
        f(before).map(|value| (0, value)).into_iter().chain(later).collect()
    };
    let group = |of: fn(&StepMetrics) -> Group| curve(&|metrics| of(metrics).cross_entropy);
    let dynamics = Dynamics {
        high: group(|metrics| metrics.high_entropy),
        low: group(|metrics| metrics.low_entropy),
        quadrants: [
            group(|metrics| metrics.by_quadrant.confident_conflict),
            group(|metrics| metrics.by_quadrant.uncertain),
            group(|metrics| metrics.by_quadrant.confident),
            group(|metrics| metrics.by_quadrant.hesitant),
        ],
        thresholds: thresholds.to_owned(),
    };
    draw_dynamics(&dynamics, run, &folder.join("dynamics.png"))?;
    let losses = Losses {
        cross_entropy: curve(&|metrics| Some(metrics.cross_entropy)),
        minimised: curve(&|metrics| Some(metrics.loss)),
        held_out: from_base(&|standing| Some(standing.validation?.cross_entropy)),
        learning_rate: curve(&|metrics| Some(metrics.learning_rate)),
    };
    draw_losses(&losses, run, &folder.join("loss.png"))?;
    let drift = from_base(&|standing| Some(standing.drift?.kl));
    let tokens = before.drift.map_or(0, |drift| drift.tokens);
    draw_drift(&Drift { kl: drift, tokens }, run, &folder.join("drift.png"))
}
