//! Determines which level this processor runs fastest, by measurement rather than from the names of its instructions.
//!
//! Some processors run bf16 products at half the rate of f32 products, and others lower their clock for the longest vectors. The first start
//! on a processor therefore times one product of a typical shape at each level and in both number formats, in some twenty milliseconds. The
//! highest level wins unless a lower one is clearly faster, in two measurements and by a margin that noise seldom reaches, so that measuring
//! again gives the same answer. The answer is stored permanently, not in the cache.
//!
//! One shape also represents the products of training, which use the same tiles. On Zen 5 (`rates_of_training` below; three shapes) avx512bf16
//! has 4.9 to 6.1 times avx2's rate in bf16 for the forward product, 4.5 to 5.0 times for the inputs' gradient and 3.5 to 4.0 times for the
//! weights' gradient; avx512 has 2.1 to 2.9, 1.5 to 2.1 and 1.8 to 1.9 times its rate in f32. The order is the same everywhere, by more than
//! the margin.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Dtype;
use super::level::Level;
use super::matmul::{Panels, multiply};
use crate::error::{Context, Result};
use crate::fetch::cache::own_state;
use crate::provenance;

/// A lower level must be this much faster in one of the two formats.
const CLEARLY_FASTER: f64 = 1.3;
/// It must be at least this fast in the other format.
const AS_FAST: f64 = 0.9;

/// Operations per second in the two number formats.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Rates {
    f32: f64,
    bf16: f64,
}

/// The stored choice.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    level: String,
    /// The measured rates of each candidate.
    flops: Vec<(String, Rates)>,
}

/// Fixes the level of this process before anything is computed: the one that `DIAGNOSE_KERNELS` requests, otherwise the fastest.
///
/// # Errors
/// Fails if the variable requests an unknown level, one that the processor lacks, or one that gives wrong products there.
pub(crate) fn settle() -> Result<Level> {
    let level = match Level::asked()? {
        #[cfg(target_arch = "x86_64")]
        Some(Level::Amx) => {
            let cure = "Unset DIAGNOSE_KERNELS to use the fastest of the other levels.";
            super::matmul::amx::check().and_then(|()| super::attention::check_tiles()).map_err(|error| error.cure(cure))?;
            Level::Amx
        }
        Some(level) => level,
        None => fastest(),
    };
    Ok(Level::fix(level))
}

fn fastest() -> Level {
    let candidates = Level::chosen_by_themselves();
    kept(path(&candidates).as_deref(), &candidates, || candidates.iter().copied().zip(rates(&candidates)).collect())
}

/// The choice stored at `path`, or one of `candidates` by measurement, which is then stored. The first process decides for all later ones. If
/// nothing can be stored, the result is the processor's highest level, so that two starts never choose differently.
fn kept(path: Option<&Path>, candidates: &[Level], measure: impl Fn() -> Vec<(Level, Rates)>) -> Level {
    let highest = candidates.last().copied().unwrap_or(Level::Portable);
    let (Some(path), [_, .., _]) = (path, candidates) else { return highest };
    let remembered = || -> Option<Level> {
        let remembered: Remembered = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        candidates.iter().copied().find(|level| level.name() == remembered.level)
    };
    if path.exists() {
        return remembered().unwrap_or(highest);
    }
    let measured = measure();
    let level = confirmed(choose(&measured), candidates, || choose(&measure()));
    let flops = measured.iter().map(|(level, rates)| (level.name().to_owned(), *rates)).collect();
    // Fails if another process was faster; then its answer is used.
    let _ = keep(path, &Remembered { level: level.name().to_owned(), flops });
    remembered().unwrap_or(highest)
}

/// Writes a new file atomically, and never overwrites an existing one.
fn keep(path: &Path, remembered: &Remembered) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).context_at(folder, "cannot create the folder")?;
    let mut file = tempfile::NamedTempFile::new_in(folder).context_at(folder, "cannot write to the folder")?;
    serde_json::to_writer_pretty(&mut file, remembered).context("cannot write JSON")?;
    file.as_file().sync_all().context_at(path, "cannot write the file")?;
    file.persist_noclobber(path).map_err(|error| error.error).context_at(path, "cannot write the file")?;
    Ok(())
}

/// The file for this processor, program version and set of levels.
fn path(candidates: &[Level]) -> Option<PathBuf> {
    let processor = provenance::processor()?;
    let names: Vec<&str> = candidates.iter().map(|level| level.name()).collect();
    let key = crate::files::sha256(format!("{processor}\n{}\n{}", env!("CARGO_PKG_VERSION"), names.join(" ")));
    Some(own_state()?.join("levels").join(format!("{}.json", &key[..16])))
}

/// The highest level, or a lower one that is clearly faster in one format and about as fast in the other. `measured` is sorted from the lowest
/// level and is not empty.
fn choose(measured: &[(Level, Rates)]) -> Level {
    let better = |than: &Rates, rates: &Rates| {
        let (f32, bf16) = (rates.f32 / than.f32, rates.bf16 / than.bf16);
        f32.max(bf16) >= CLEARLY_FASTER && f32.min(bf16) >= AS_FAST
    };
    let best = measured.iter().rev().copied().reduce(|best, lower| if better(&best.1, &lower.1) { lower } else { best });
    best.map_or(Level::Portable, |(level, _)| level)
}

/// The first choice if it is the highest level, otherwise the higher of two choices: a busy machine can spoil a measurement, and the choice is
/// permanent.
fn confirmed(first: Level, candidates: &[Level], second: impl FnOnce() -> Level) -> Level {
    if candidates.last() == Some(&first) { first } else { first.max(second()) }
}

/// The best of several tries. The levels take turns, so that other load on the machine affects all of them.
fn rates(levels: &[Level]) -> Vec<Rates> {
    const TRIES: usize = 5;
    // A typical number of rows and a small model's projection.
    const ROWS: usize = 192;
    const INPUTS: usize = 576;
    const OUTPUTS: usize = 768;
    let x: Vec<f32> = (0..ROWS * INPUTS).map(|i| (i % 7) as f32 / 8.0).collect();
    let w: Vec<f32> = (0..OUTPUTS * INPUTS).map(|i| (i % 5) as f32 / 8.0).collect();
    let weights = [Dtype::F32, Dtype::Bf16].map(|dtype| {
        let mut panels = Panels::new(INPUTS, dtype);
        panels.push(&w);
        panels
    });
    let mut best = vec![[0f64; 2]; levels.len()];
    for _ in 0..TRIES {
        for (best, &level) in best.iter_mut().zip(levels) {
            for (best, weight) in best.iter_mut().zip(&weights) {
                let began = Instant::now();
                std::hint::black_box(multiply(level, &x, ROWS, weight, None));
                *best = best.max((2 * ROWS * INPUTS * OUTPUTS) as f64 / began.elapsed().as_secs_f64());
            }
        }
    }
    best.into_iter().map(|[f32, bf16]| Rates { f32, bf16 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(rates: &[(Level, f64, f64)]) -> Level {
        let measured: Vec<(Level, Rates)> = rates.iter().map(|&(level, f32, bf16)| (level, Rates { f32, bf16 })).collect();
        choose(&measured)
    }

    #[test]
    fn the_highest_level_wins_unless_a_lower_one_is_clearly_faster() {
        use Level::{Avx2, Avx512, Avx512Bf16};
        // Zen 4: the highest level is the fastest.
        assert_eq!(chosen(&[(Avx2, 150.0, 110.0), (Avx512, 200.0, 120.0), (Avx512Bf16, 200.0, 390.0)]), Avx512Bf16);
        // A Xeon whose bf16 products run at half the rate of f32.
        assert_eq!(chosen(&[(Avx2, 125.0, 90.0), (Avx512, 250.0, 190.0), (Avx512Bf16, 250.0, 126.0)]), Avx512);
        // A processor that lowers its clock for 512 bits.
        assert_eq!(chosen(&[(Avx2, 200.0, 140.0), (Avx512, 140.0, 100.0)]), Avx2);
        // Noise in either direction has no effect.
        assert_eq!(chosen(&[(Avx2, 130.0, 110.0), (Avx512, 110.0, 120.0)]), Avx512);
        assert_eq!(chosen(&[(Avx512, 220.0, 150.0), (Avx512Bf16, 180.0, 140.0)]), Avx512Bf16);
        // Faster in one format but slower in the other is no gain.
        assert_eq!(chosen(&[(Avx512, 200.0, 300.0), (Avx512Bf16, 300.0, 200.0)]), Avx512Bf16);
    }

    #[test]
    fn the_first_choice_stands() {
        use Level::{Avx2, Avx512};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("levels").join("one.json");
        let levels = [Avx2, Avx512];
        let measured = |avx2: f64| {
            move || levels.into_iter().zip([avx2, 100.0]).map(|(level, f32)| (level, Rates { f32, bf16: f32 })).collect()
        };
        let never = || panic!("the choice was made");
        // Without a place to store the choice, the highest level is used, and nothing is measured.
        assert_eq!(kept(None, &levels, never), Avx512);
        assert_eq!(kept(Some(&path), &[Avx2], never), Avx2);
        assert_eq!(kept(Some(&path), &levels, measured(200.0)), Avx2);
        assert_eq!(kept(Some(&path), &levels, never), Avx2);
        // Another process that started at the same time was faster.
        let other = folder.path().join("other.json");
        let overtaken = || {
            let first = Remembered { level: "avx512".to_owned(), flops: Vec::new() };
            let _ = keep(&other, &first);
            measured(200.0)()
        };
        assert_eq!(kept(Some(&other), &levels, overtaken), Avx512);
        // An unreadable file does not cause repeated measurements.
        std::fs::write(&other, "{").unwrap();
        assert_eq!(kept(Some(&other), &levels, never), Avx512);
        // A folder that is not writable.
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(kept(Some(&file.join("levels").join("one.json")), &levels, measured(200.0)), Avx512);
    }

    /// The levels' rates in the products that training adds to the forward product, to check whether one shape represents all:
    /// `cargo test --release --lib rates_of_training -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement, not a test"]
    fn rates_of_training() {
        use crate::kernels::matmul::{Trained, input_gradient};
        const ROWS: usize = 1024;
        for (inputs, outputs) in [(576, 960), (576, 3072), (1536, 576)] {
            let noise = |n: usize| crate::kernels::testing::noise(n, 1.0, 3);
            let (x, w, dy) = (noise(ROWS * inputs), noise(outputs * inputs), noise(ROWS * outputs));
            for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Bf16x3] {
                for level in Level::chosen_by_themselves() {
                    let mut panels = Panels::new(inputs, dtype);
                    panels.push(&w);
                    let trained = Trained::block_diagonal(&[(outputs, inputs, w.clone())], dtype);
                    let rate = |run: &dyn Fn()| {
                        let mut times: Vec<f64> = (0..5)
                            .map(|_| {
                                let began = Instant::now();
                                run();
                                began.elapsed().as_secs_f64()
                            })
                            .collect();
                        times.sort_by(f64::total_cmp);
                        (2 * ROWS * inputs * outputs) as f64 / times[2] / 1e9
                    };
                    let forward = rate(&|| drop(multiply(level, &x, ROWS, &panels, None)));
                    let of_input = rate(&|| drop(input_gradient(level, &panels, &dy, ROWS)));
                    let of_weight = rate(&|| trained.add_gradient(level, &x, &dy, ROWS));
                    println!(
                        "[{outputs}, {inputs}] {dtype} {level}: forward {forward:.0}, dx {of_input:.0}, dW {of_weight:.0} GFLOP/s"
                    );
                }
            }
        }
    }

    #[test]
    fn every_level_has_a_rate() {
        let candidates = Level::chosen_by_themselves();
        let measured = rates(&candidates);
        assert!(
            measured.len() == candidates.len() && measured.iter().all(|rates| rates.f32 > 1e8 && rates.bf16 > 1e8),
            "{measured:?}"
        );
    }

    #[test]
    fn a_lower_level_must_win_twice() {
        let levels = [Level::Portable, Level::Avx2, Level::Avx512];
        assert_eq!(confirmed(Level::Avx512, &levels, || panic!("the highest level needs no second measurement")), Level::Avx512);
        assert_eq!(confirmed(Level::Portable, &levels, || Level::Portable), Level::Portable);
        // Noise in one of two measurements does not choose a level that neither measurement chose.
        assert_eq!(confirmed(Level::Portable, &levels, || Level::Avx2), Level::Avx2);
        assert_eq!(confirmed(Level::Avx2, &levels, || Level::Portable), Level::Avx2);
        assert_eq!(confirmed(Level::Avx2, &levels, || Level::Avx512), Level::Avx512);
    }
}
