//! Compares the estimates with numbers computed by hand, with scipy and statsmodels, and with simulations.

use super::shares::{student_t_975, tango, wilson};
use super::*;
use crate::random::SplitMix;

/// Every item drawn independently.
const ALONE: Design = Design::ALONE;

fn plain(values: &[f64]) -> Vec<Term> {
    values.iter().map(|&numerator| Term { numerator, denominator: 1.0 }).collect()
}

fn close(found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance, "{found} for {expected}");
}

#[test]
fn numbers_that_a_reader_can_check() {
    // 3 of 4 right: sample variance (3 * 1/16 + 9/16) / 3 = 1/4, so that the standard error is 0.5 / 2.
    let estimate = estimate(&plain(&[1.0, 1.0, 1.0, 0.0]), &ALONE, Link::Identity);
    assert_eq!((estimate.value, estimate.stderr), (0.75, Some(0.25)));
    // A perplexity: exp of the mean of ln 2 and ln 8 is 4.
    close(ratio(&plain(&[2f64.ln(), 8f64.ln()]), Link::Exp), 4.0, 1e-12);
    // 30 bits on 10 bytes and 10 on 10: 2 bits per byte.
    let terms = [(30.0, 10.0), (10.0, 10.0)].map(|(numerator, denominator)| Term { numerator, denominator });
    assert_eq!(ratio(&terms, Link::Identity), 2.0);
    // Two flips one way: 2 * (1/2)^2.
    assert_eq!([mcnemar_exact(2, 0), mcnemar_exact(0, 0), mcnemar_exact(3, 3)], [0.5, 1.0, 1.0]);
    assert_eq!(super::estimate(&plain(&[1.0]), &ALONE, Link::Identity), Estimate::bare(1.0));
}

#[test]
fn scipy_and_statsmodels_give_the_same() {
    // from statsmodels.stats.contingency_tables import mcnemar
    // [mcnemar([[50, b], [c, 40]], exact=True).pvalue for b, c in [(12, 5), (1, 9), (300, 260), (2000, 1800)]]
    for ((lost, gained), expected) in [(12, 5), (1, 9), (300, 260), (2000, 1800)].into_iter().zip(MCNEMAR) {
        close(mcnemar_exact(lost, gained), expected, 1e-9 * expected);
    }
    // from statsmodels.stats.multitest import multipletests
    // multipletests([0.01, 0.04, 0.03, 0.005, 0.5], method="holm")[1]
    for (found, expected) in holm(&[0.01, 0.04, 0.03, 0.005, 0.5]).into_iter().zip(HOLM) {
        close(found, expected, 1e-12);
    }
    // x = np.arange(40) % 7 / 7 + np.arange(40) / 40; scipy.stats.sem(x)
    // scipy.stats.bootstrap((x,), np.mean, n_resamples=200_000, method="percentile", rng=1).confidence_interval
    let values: Vec<f64> = (0..40).map(|i| f64::from(i % 7) / 7.0 + f64::from(i) / 40.0).collect();
    let own = estimate(&plain(&values), &ALONE, Link::Identity);
    close(own.stderr.unwrap(), SEM, 1e-12);
    // Ours are wider, because 40 items require it: by Student's t with 39 degrees of freedom, 2.0227, and sqrt(40/39).
    let wider = |value: f64, end: f64| value + (40f64 / 39.0).sqrt() * 2.0227 / 1.96 * (end - value);
    // 2000 resamples determine each end to about 0.05 standard errors.
    for (found, expected) in own.ci95.unwrap().into_iter().zip(BOOTSTRAP) {
        close(found, wider(own.value, expected), 0.15 * SEM);
    }
    // The paired difference between x and y = x * 0.9 + (np.arange(40) % 3) / 10.
    let after: Vec<f64> = values.iter().zip(0..).map(|(x, i)| 0.9 * x + f64::from(i % 3) / 10.0).collect();
    let difference = paired_difference(&plain(&values), &plain(&after), &ALONE, Link::Identity);
    for (found, expected) in difference.ci95.unwrap().into_iter().zip(PAIRED_BOOTSTRAP) {
        close(found, wider(difference.value, expected), 0.15 * PAIRED_SEM);
    }
    // The same for exp of the mean, by scipy.stats.bootstrap((x,), lambda x, axis: np.exp(x.mean(axis=axis)), ...).
    let perplexity = estimate(&plain(&values), &ALONE, Link::Exp);
    for (found, expected) in perplexity.ci95.unwrap().into_iter().zip(EXP_BOOTSTRAP) {
        close(found, wider(own.value, expected.ln()).exp(), 0.15 * perplexity.stderr.unwrap());
    }
}

/// Nominally 95 %; 400 experiments leave a standard deviation of 1.1 points.
#[test]
fn intervals_cover_the_truth_as_often_as_they_say() {
    let mut random = SplitMix(5);
    let mut uniform = || random.next() as f64 / 2f64.powi(64);
    let (n, n_experiments) = (150, 400);
    let (mut covered, mut covered_difference, mut false_alarms) = (0, 0, 0);
    for _ in 0..n_experiments {
        // Before, an item is right with probability 0.6; after, one in ten of the right ones is lost and one in ten of the wrong
        // ones gained.
        let before: Vec<f64> = (0..n).map(|_| f64::from(u8::from(uniform() < 0.6))).collect();
        let flip = |x: &f64, flips: bool| if flips { 1.0 - x } else { *x };
        let after: Vec<f64> = before.iter().map(|x| flip(x, uniform() < 0.1)).collect();
        let within = |estimate: Estimate, truth: f64| {
            let [low, high] = estimate.ci95.unwrap();
            low <= truth && truth <= high
        };
        covered += usize::from(within(estimate(&plain(&before), &ALONE, Link::Identity), 0.6));
        let difference = paired_difference(&plain(&before), &plain(&after), &ALONE, Link::Identity);
        covered_difference += usize::from(within(difference, 0.1 * (0.4 - 0.6)));
        // The true drop is 2 points, so that an alarm for more than 2 is false.
        false_alarms += usize::from(macro_difference(&[difference]).ci95.unwrap()[1] < -0.02);
    }
    let share = |count: usize| count as f64 / f64::from(n_experiments);
    println!("covered {} and {}, false alarms {}", share(covered), share(covered_difference), share(false_alarms));
    assert!((0.90..=0.97).contains(&share(covered)) && (0.90..=0.97).contains(&share(covered_difference)));
    // Nominally 2.5 %.
    assert!(share(false_alarms) <= 0.05);
}

/// Shares near 0 and 1, rare flips, groups of different sizes with correlated items, and subjects of different difficulty.
/// Nominally 95 %; 1000 experiments leave a standard deviation of 0.7 points. Score intervals of such small counts are
/// conservative because few counts are likely; intervals over few groups or rows are somewhat too short: the bounds allow for
/// both.
#[test]
fn intervals_of_few_events_groups_and_subjects_cover_the_truth() {
    let mut random = SplitMix(41);
    let mut uniform = move || random.unit();
    const N_EXPERIMENTS: usize = 1000;
    let covers = |found: Estimate, truth: f64| found.ci95.is_some_and(|[low, high]| low <= truth && truth <= high);
    let mut check = |what: &str, lowest: f64, experiment: &mut dyn FnMut(&mut dyn FnMut() -> f64) -> bool| {
        let covered = (0..N_EXPERIMENTS).filter(|_| experiment(&mut uniform)).count() as f64 / N_EXPERIMENTS as f64;
        println!("{what}: {covered}");
        assert!(covered >= lowest, "{what} is covered {covered}");
    };
    let right = |is_right: bool| f64::from(u8::from(is_right));
    for (n, lowest) in [(2, 0.86), (3, 0.86), (5, 0.87), (12, 0.89)] {
        check(&format!("a mean over {n} rows of exponential length"), lowest, &mut |uniform| {
            let rows: Vec<f64> = (0..n).map(|_| -(1.0 - uniform()).ln()).collect();
            covers(estimate(&plain(&rows), &ALONE, Link::Identity), 1.0)
        });
        check(&format!("the gap of two means over {n} and {} rows", 2 * n), lowest, &mut |uniform| {
            let mut side = |n: usize| (0..n).map(|_| -(1.0 - uniform()).ln()).collect::<Vec<f64>>();
            let (few, many) = (side(n), side(2 * n));
            let mean = |of: &[f64], draw: &[u32]| draw.iter().map(|&idx| of[idx as usize]).sum::<f64>() / draw.len() as f64;
            let all = [n, 2 * n].map(|n| (0..n as u32).collect::<Vec<_>>());
            let gap = |draws: [&[u32]; 2]| [mean(&many, draws[1]) - mean(&few, draws[0])];
            let [[low, high]] = two_sample_intervals([n, 2 * n], gap([&all[0], &all[1]]), gap);
            (low..=high).contains(&0.0)
        });
    }
    for p in [0.01, 0.05, 0.5, 0.98] {
        check(&format!("a share of {p} of 40"), 0.92, &mut |uniform| {
            let items: Vec<f64> = (0..40).map(|_| right(uniform() < p)).collect();
            covers(estimate(&plain(&items), &ALONE, Link::Identity), p)
        });
    }
    for (lost, gained) in [(0.01, 0.01), (0.03, 0.01), (0.1, 0.02), (0.15, 0.15)] {
        check(&format!("{lost} lost and {gained} gained of 80"), 0.93, &mut |uniform| {
            let moves: Vec<f64> = (0..80).map(|_| uniform()).collect();
            let side = |flips: fn(f64, f64, f64) -> bool| {
                plain(&moves.iter().map(|&u| right(flips(u, lost, gained))).collect::<Vec<_>>())
            };
            let (before, after) = (side(|u, lost, _| u < lost), side(|u, lost, gained| u >= lost && u < lost + gained));
            covers(paired_difference(&before, &after, &ALONE, Link::Identity), gained - lost)
        });
    }
    check("the macro average of three tasks with rare flips", 0.94, &mut |uniform| {
        let task = |uniform: &mut dyn FnMut() -> f64| {
            let before: Vec<f64> = (0..60).map(|_| right(uniform() < 0.5)).collect();
            let after: Vec<f64> = before.iter().map(|x| if uniform() < 0.03 { 1.0 - x } else { *x }).collect();
            paired_difference(&plain(&before), &plain(&after), &ALONE, Link::Identity)
        };
        covers(macro_difference(&[task(uniform), task(uniform), task(uniform)]), 0.0)
    });
    for (n_groups, lowest) in [(12, 0.90), (40, 0.92)] {
        let draw = |uniform: &mut dyn FnMut() -> f64| {
            let (mut groups, mut before, mut after) = (Vec::new(), Vec::new(), Vec::new());
            for group in 0..n_groups {
                let (ease, flipping) = (uniform(), 0.3 * uniform());
                for _ in 0..1 + (uniform() * 8.0) as usize {
                    let was = uniform() < ease;
                    groups.push(f64::from(group));
                    before.push(right(was));
                    after.push(right(was != (uniform() < flipping)));
                }
            }
            (design(None, Some(&groups)), plain(&before), plain(&after))
        };
        check(&format!("a share over {n_groups} groups"), lowest, &mut |uniform| {
            let (design, before, _) = draw(uniform);
            covers(estimate(&before, &design, Link::Identity), 0.5)
        });
        check(&format!("a difference over {n_groups} groups"), lowest, &mut |uniform| {
            let (design, before, after) = draw(uniform);
            covers(paired_difference(&before, &after, &design, Link::Identity), 0.0)
        });
    }
    // Eight subjects with probabilities of 0.2 to 0.9 and 5 to 26 items, the same in every draw.
    let sizes: Vec<usize> = (0..8).map(|subject| 5 + 3 * subject).collect();
    let chance = |subject: usize| 0.2 + 0.1 * subject as f64;
    let subjects: Vec<f64> = sizes.iter().enumerate().flat_map(|(subject, &n)| vec![subject as f64; n]).collect();
    let design = design(Some(&subjects), None);
    let by_items = sizes.iter().enumerate().map(|(subject, &n)| chance(subject) * n as f64).sum::<f64>() / subjects.len() as f64;
    let by_subjects = (0..8).map(chance).sum::<f64>() / 8.0;
    let draw = |uniform: &mut dyn FnMut() -> f64| -> Vec<f64> {
        subjects.iter().map(|&subject| right(uniform() < chance(subject as usize))).collect()
    };
    check("a score over subjects, by items", 0.94, &mut |uniform| {
        covers(estimate(&plain(&draw(uniform)), &design, Link::Identity), by_items)
    });
    check("a score over subjects, by subjects", 0.93, &mut |uniform| {
        covers(mean_over_parts(&plain(&draw(uniform)), &design).unwrap(), by_subjects)
    });
    check("a difference over subjects", 0.93, &mut |uniform| {
        let before = draw(uniform);
        let after: Vec<f64> = before.iter().map(|x| if uniform() < 0.1 { 1.0 - x } else { *x }).collect();
        let expected: f64 = (0..8).map(|subject| 0.1 * (1.0 - 2.0 * chance(subject)) / 8.0).sum();
        covers(mean_difference_over_parts(&plain(&before), &plain(&after), &design).unwrap(), expected)
    });
    // Small hard subjects beside large easy ones: the items of each, and their shares right, lost and gained.
    let hard = |n: usize| (n, [0.5, 0.4, 0.1]);
    let easy = |n: usize| (n, [0.98, 0.01, 0.01]);
    let one_hard = [&[hard(1)][..], &[easy(50); 3]].concat();
    let ten_hard = [&[hard(1); 10][..], &[easy(100); 2]].concat();
    for subjects in [ten_hard, one_hard, vec![hard(2), hard(2), easy(200), easy(500)], vec![hard(5), easy(1000)]] {
        let what = format!("{:?}", subjects.iter().map(|(n, shares)| (n, shares[0])).collect::<Vec<_>>());
        let items: Vec<(f64, [f64; 3])> =
            subjects.iter().enumerate().flat_map(|(subject, &(n, shares))| vec![(subject as f64, shares); n]).collect();
        let design = self::design(Some(&items.iter().map(|(subject, _)| *subject).collect::<Vec<_>>()), None);
        let mean = |of: fn(&[f64; 3]) -> f64| subjects.iter().map(|(_, shares)| of(shares)).sum::<f64>() / subjects.len() as f64;
        check(&format!("a score over hard and easy subjects {what}"), 0.90, &mut |uniform| {
            let scores: Vec<f64> = items.iter().map(|(_, [is_right, ..])| right(uniform() < *is_right)).collect();
            covers(mean_over_parts(&plain(&scores), &design).unwrap(), mean(|[right, ..]| *right))
        });
        check(&format!("a difference over hard and easy subjects {what}"), 0.93, &mut |uniform| {
            let both = items.iter().map(|(_, [_, lost, gained])| {
                let chance = uniform();
                (right(chance < *lost), right(chance >= *lost && chance < lost + gained))
            });
            let (before, after): (Vec<f64>, Vec<f64>) = both.unzip();
            let found = mean_difference_over_parts(&plain(&before), &plain(&after), &design).unwrap();
            covers(found, mean(|[_, lost, gained]| gained - lost))
        });
    }
    // Subjects of a few items, which are often all right, beside large ones; each draw has its own subjects, at four fifths on average.
    for sizes in [&[2, 2, 2, 200, 500][..], &[2, 100, 100], &[1, 3, 50, 60], &[5, 5, 100, 200], &[10, 10, 100, 200], &[2; 57]] {
        let subjects: Vec<f64> = sizes.iter().enumerate().flat_map(|(subject, &n)| vec![subject as f64; n]).collect();
        let design = self::design(Some(&subjects), None);
        let draw = |uniform: &mut dyn FnMut() -> f64| -> (Vec<f64>, Vec<f64>) {
            let chances: Vec<f64> = sizes.iter().map(|_| uniform().powf(0.25)).collect();
            let items = subjects.iter().map(|&subject| right(uniform() < chances[subject as usize])).collect();
            (chances, items)
        };
        check(&format!("a score over subjects of {sizes:?}"), 0.90, &mut |uniform| {
            let (chances, items) = draw(uniform);
            covers(mean_over_parts(&plain(&items), &design).unwrap(), chances.iter().sum::<f64>() / sizes.len() as f64)
        });
        check(&format!("a difference over subjects of {sizes:?}"), 0.90, &mut |uniform| {
            let (chances, before) = draw(uniform);
            let after: Vec<f64> = before.iter().map(|x| if uniform() < 0.1 { 1.0 - x } else { *x }).collect();
            let expected = chances.iter().map(|chance| 0.1 * (1.0 - 2.0 * chance)).sum::<f64>() / sizes.len() as f64;
            covers(mean_difference_over_parts(&plain(&before), &plain(&after), &design).unwrap(), expected)
        });
    }
}

#[test]
fn intervals_over_clusters_by_hand() {
    // scipy.stats.t.ppf(0.975, [1, 2, 3, 5, 10, 30, 1000])
    let expected = [12.706205, 4.302653, 3.182446, 2.570582, 2.228139, 2.042272, 1.962339];
    for (degrees, expected) in [1, 2, 3, 5, 10, 30, 1000].into_iter().zip(expected) {
        close(student_t_975(degrees), expected, 0.003 * expected);
    }
    // Four rows with 1, 2, 3, 4 of 10: the ratio is 1/4, and its error is that of the mean of 0.1, 0.2, 0.3, 0.4.
    let mut sums = ClusterSums::default();
    (1..=4).for_each(|i| sums.add(Term { numerator: f64::from(i), denominator: 10.0 }));
    let reach = student_t_975(3) * (0.05f64 / 3.0 / 4.0).sqrt();
    for (found, expected) in sums.ci95(Scale::Plain).unwrap().into_iter().zip([0.25 - reach, 0.25 + reach]) {
        close(found, expected, 1e-12);
    }
    let [low, high] = sums.ci95(Scale::LogOdds).unwrap();
    close((low / (1.0 - low)).ln() + (high / (1.0 - high)).ln(), 2.0 * (1.0f64 / 3.0).ln(), 1e-12);
    // Rows that are all alike do not show how much others would vary: a ratio has no interval then, and a share that of as many
    // items. A share of 1 has no odds.
    let alike = |share: f64| {
        let mut alike = ClusterSums::default();
        (1..=4).for_each(|i| alike.add(Term { numerator: share * f64::from(i), denominator: f64::from(i) }));
        [Scale::Plain, Scale::Log, Scale::LogOdds].map(|scale| alike.ci95(scale))
    };
    assert_eq!(alike(1.0), [None; 3]);
    // 0.1 * i is rounded.
    let [plain, factor, share] = alike(0.1);
    assert_eq!((plain, factor), (None, None));
    for (found, expected) in share.unwrap().into_iter().zip(wilson(0.1 * 4.0, 4.0)) {
        close(found, expected, 1e-12);
    }
    assert_eq!(alike(0.0), [Some([0.0; 2]), Some([0.0; 2]), None]);
    assert_eq!(cluster_interval(1.0, 1e3, 9, Scale::Log), None);
    assert_eq!((ClusterSums::default().ci95(Scale::Plain), cluster_interval(0.0, 0.1, 9, Scale::LogOdds)), (None, None));
}

/// Rows of different lengths; in some, every other token is odd, in most, hardly any. Shares of tokens and of a heavy-tailed
/// loss, and the ratio of two sums. Nominally 95 %; 1000 experiments leave a standard deviation of 0.7 points. With few rows and
/// heavy tails the intervals are somewhat too short, which the bounds allow for.
#[test]
fn intervals_over_clusters_cover_the_truth_as_often_as_they_say() {
    for (n_rows, lowest) in [(40, 0.90), (160, 0.92)] {
        let mut random = SplitMix(29);
        let mut uniform = move || random.unit();
        let mut row = move || {
            let tokens = (5.0 - 60.0 * (1.0 - uniform()).ln()).floor();
            let odd = uniform().powi(4);
            let (mut n_odd, mut loss, mut odd_loss) = (0.0, 0.0, 0.0);
            for _ in 0..tokens as usize {
                let is_odd = uniform() < odd;
                // The square of an exponential variable of mean 1 has a mean of 2 and a variance of 20.
                let own = (1.0 - uniform()).ln().powi(2) * if is_odd { 3.0 } else { 1.0 };
                loss += own;
                if is_odd {
                    (n_odd, odd_loss) = (n_odd + 1.0, odd_loss + own);
                }
            }
            [(n_odd, tokens, Scale::LogOdds), (odd_loss, loss, Scale::LogOdds), (loss, loss - 0.8 * odd_loss, Scale::Log)]
        };
        let mut truth = [(0.0, 0.0); 3];
        for _ in 0..400_000 {
            for (sum, (a, b, _)) in truth.iter_mut().zip(row()) {
                *sum = (sum.0 + a, sum.1 + b);
            }
        }
        let (n_experiments, mut covered) = (1000, [0; 3]);
        for _ in 0..n_experiments {
            let mut sums = [ClusterSums::default(); 3];
            let mut scales = [Scale::Plain; 3];
            for _ in 0..n_rows {
                for (idx, (numerator, denominator, scale)) in row().into_iter().enumerate() {
                    sums[idx].add(Term { numerator, denominator });
                    scales[idx] = scale;
                }
            }
            for idx in 0..3 {
                let truth = truth[idx].0 / truth[idx].1;
                let [low, high] = sums[idx].ci95(scales[idx]).unwrap();
                covered[idx] += usize::from(low <= truth && truth <= high);
            }
        }
        let shares = covered.map(|count| count as f64 / f64::from(n_experiments));
        println!("{n_rows} rows: shares of tokens and loss and the factor are covered {shares:?}");
        assert!(shares.iter().all(|share| (lowest..=0.975).contains(share)), "{n_rows} rows: {shares:?}");
    }
}

/// Changes over rows of different lengths, in which few tokens change much and the tokens of a row change together. Nominally 95
/// %; 400 experiments leave a standard deviation of 1.1 points; the bounds allow for intervals over few rows with heavy tails
/// being somewhat too short.
#[test]
fn changes_over_rows_cover_the_truth_as_often_as_they_say() {
    for (n_rows, lowest) in [(12, 0.90), (60, 0.91)] {
        let mut random = SplitMix(31);
        let mut uniform = move || random.unit();
        let mut row = move || {
            let tokens = (2.0 - 40.0 * (1.0 - uniform()).ln()).floor();
            let shift = 0.2 * (uniform() - 0.3);
            let changes = (0..tokens as usize).map(|_| shift + 0.5 * (1.0 - uniform()).ln().powi(2) * (uniform() - 0.5)).sum();
            Term { numerator: changes, denominator: tokens }
        };
        let mut truth = Term::default();
        (0..200_000).for_each(|_| truth += row());
        let truth = truth.numerator / truth.denominator;
        let n_experiments = 400;
        let covered = (0..n_experiments)
            .filter(|_| {
                let rows: Vec<Term> = (0..n_rows).map(|_| row()).collect();
                let [low, high] = over_clusters(&rows).ci95.unwrap();
                low <= truth && truth <= high
            })
            .count();
        let share = covered as f64 / f64::from(n_experiments);
        println!("{n_rows} rows: the change is covered in {share}");
        assert!((lowest..=0.99).contains(&share), "{n_rows} rows: {share}");
    }
    assert_eq!(over_clusters(&[Term { numerator: 1.0, denominator: 2.0 }]), Estimate::bare(0.5));
    assert_eq!(over_clusters(&[Term { numerator: 0.0, denominator: 2.0 }; 3]).ci95, Some([0.0, 0.0]));
}

/// McNemar's exact test is somewhat conservative, so that its power at the computed drop is slightly below 0.8.
#[test]
fn the_detectable_drop_is_detected_four_times_in_five() {
    let (n, flipping) = (400, 0.2);
    let drop = detectable_drop(n, flipping).unwrap();
    let mut random = SplitMix(11);
    let mut uniform = || random.next() as f64 / 2f64.powi(64);
    let detected = (0..1000).filter(|_| {
        let (mut lost, mut gained) = (0, 0);
        for _ in 0..n {
            match uniform() {
                u if u < (flipping + drop) / 2.0 => lost += 1,
                u if u < flipping => gained += 1,
                _ => {}
            }
        }
        mcnemar_exact(lost, gained) < 0.05
    });
    let power = detected.count() as f64 / 1000.0;
    assert!((0.72..=0.85).contains(&power), "a drop of {drop} is found with power {power}");
    assert_eq!((detectable_drop(400, 0.0), detectable_drop(5, 0.2)), (None, None));
}

#[test]
fn a_model_against_itself_differs_by_nothing() {
    let terms = plain(&[1.0, 0.0, 1.0, 1.0, 0.0]);
    let difference = |n: usize| paired_difference(&terms[..n], &terms[..n], &ALONE, Link::Identity);
    for same in [paired_difference(&terms, &terms, &ALONE, Link::Identity), macro_difference(&[difference(5), difference(2)])] {
        // No item has changed, but five items do not prove that none would.
        let [low, high] = same.ci95.unwrap();
        assert!(same.value == 0.0 && same.stderr == Some(0.0) && low < -0.2 && high > 0.2, "{same:?}");
    }
}

/// Made by tests/fixtures/eval/intervals.py.
fn fixture() -> serde_json::Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/eval/intervals.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn numbers(list: &serde_json::Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[test]
fn score_intervals_are_those_of_statsmodels_and_of_the_definition() {
    let fixture = fixture();
    for case in fixture["wilson"].as_array().unwrap() {
        let [right, n, low, high] = numbers(case)[..] else { panic!() };
        let found = wilson(right, n);
        close(found[0], low, 1e-12);
        close(found[1], high, 1e-12);
        let share: Vec<f64> = (0..n as usize).map(|i| f64::from(u8::from(i < right as usize))).collect();
        let found = estimate(&plain(&share), &ALONE, Link::Identity);
        assert_eq!((found.ci95, found.interval), (Some(wilson(right, n)), Some(Interval::Wilson)));
    }
    for case in fixture["tango"].as_array().unwrap() {
        let [lost, gained, n, low, high] = numbers(case)[..] else { panic!() };
        let found = tango(lost, gained, n);
        // The script's maximum of the likelihood is accurate to 1e-10.
        close(found[0], low, 1e-8);
        close(found[1], high, 1e-8);
        let side = |flipped: f64, from: f64| {
            let item = |i: usize| f64::from(u8::from((i as f64) >= from && (i as f64) < from + flipped));
            plain(&(0..n as usize).map(item).collect::<Vec<_>>())
        };
        let found = paired_difference(&side(lost, 0.0), &side(gained, lost), &ALONE, Link::Identity);
        assert_eq!((found.ci95, found.interval), (Some(tango(lost, gained, n)), Some(Interval::Tango)));
    }
}

fn design(parts: Option<&[f64]>, groups: Option<&[f64]>) -> Design {
    let names = |numbers: Option<&[f64]>| -> Vec<Option<String>> {
        let n = parts.or(groups).map_or(0, <[f64]>::len);
        numbers.map_or(vec![None; n], |numbers| numbers.iter().map(|number| Some(number.to_string())).collect())
    };
    let (parts, groups) = (names(parts), names(groups));
    Design::of(parts.iter().zip(&groups).map(|(part, group)| (part.as_deref(), group.as_deref())))
}

#[test]
fn errors_over_groups_are_statsmodels_and_over_subjects_the_harness() {
    let fixture = fixture();
    let of = |path: &str| fixture.pointer(path).unwrap().as_f64().unwrap();
    let list = |path: &str| numbers(fixture.pointer(path).unwrap());
    let design = |parts: Option<&str>, groups: Option<&str>| design(parts.map(list).as_deref(), groups.map(list).as_deref());
    let groups = design(None, Some("/clustered/group"));
    let (before, after) = (plain(&list("/clustered/before")), plain(&list("/clustered/after")));
    let found = estimate(&before, &groups, Link::Identity);
    close(found.stderr.unwrap(), of("/clustered/stderr"), 1e-12);
    assert_eq!(found.interval, Some(Interval::GroupBootstrap));
    let difference = paired_difference(&before, &after, &groups, Link::Identity);
    close(difference.stderr.unwrap(), of("/clustered/stderr_difference"), 1e-12);
    let subjects = design(Some("/pooled/subject"), None);
    let items = plain(&list("/pooled/x"));
    close(estimate(&items, &subjects, Link::Identity).stderr.unwrap(), of("/pooled/stderr"), 1e-12);
    let mean = mean_over_parts(&items, &subjects).unwrap();
    close(mean.value, of("/pooled/mean_over_subjects"), 1e-12);
    close(mean.stderr.unwrap(), of("/pooled/stderr_over_subjects"), 1e-12);
    assert_eq!(mean_over_parts(&items, &ALONE), None);
    let same = mean_difference_over_parts(&items, &items, &subjects).unwrap();
    assert!(same.value == 0.0 && same.ci95.is_some_and(|[low, high]| low < -0.02 && high > 0.02), "{same:?}");
}

/// An item with several answers counts as the share of them that are right. Three parts of 2, 4 and 8 items.
#[test]
fn means_over_subjects_take_shares() {
    let subjects = [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0];
    let shares = [0.25, 0.75, 0.5, 0.5, 1.0, 0.0, 1.0, 0.75, 1.0, 0.75, 1.0, 0.75, 1.0, 0.75];
    let (terms, subjects) = (plain(&shares), design(Some(&subjects), None));
    let mean = mean_over_parts(&terms, &subjects).unwrap();
    close(mean.value, (0.5 + 0.5 + 0.875) / 3.0, 1e-12);
    // The squared standard errors of the parts: 0.125 / 2, (0.5 / 3) / 4 and (0.125 / 7) / 8.
    close(mean.stderr.unwrap(), (0.125f64 / 2.0 + 0.5 / 12.0 + 0.125 / 56.0).sqrt() / 3.0, 1e-12);
    assert!(mean.ci95.is_some_and(|[low, high]| low < mean.value - 0.1 && high > mean.value + 0.1), "{mean:?}");
    let better = plain(&shares.map(|share| (share + 0.25).min(1.0)));
    let difference = mean_difference_over_parts(&terms, &better, &subjects).unwrap();
    close(difference.value, (0.25 + 0.75 / 4.0 + 1.0 / 8.0) / 3.0, 1e-12);
    // Losses in nats are not shares.
    assert_eq!(mean_over_parts(&plain(&[1.5; 14]), &subjects), None);
}

#[test]
fn certainty_is_never_whole() {
    let is_doubtful =
        |found: Estimate| found.ci95.is_none_or(|[low, high]| low < high && low <= found.value && found.value <= high);
    for (value, n) in [(0.0, 1), (1.0, 1), (0.0, 2), (0.0, 40), (1.0, 80)] {
        let terms = plain(&vec![value; n]);
        let groups = design(None, Some(&(0..n).map(|i| (i / 4) as f64).collect::<Vec<_>>()));
        let parts = design(Some(&(0..n).map(|i| (i % 3) as f64).collect::<Vec<_>>()), None);
        for design in [&ALONE, &groups, &parts] {
            let found = estimate(&terms, design, Link::Identity);
            assert!(is_doubtful(found) && (n < 5 || found.ci95.is_some()), "{n} of {value}: {found:?}");
            let found = paired_difference(&terms, &terms, design, Link::Identity);
            assert!(is_doubtful(found) && (n < 5 || found.ci95.is_some()), "{n} of {value}: {found:?}");
            let over_parts = [mean_over_parts(&terms, design), mean_difference_over_parts(&terms, &terms, design)];
            assert!(over_parts.into_iter().flatten().all(is_doubtful), "{over_parts:?}");
        }
        // Ten groups of four equal items count as ten items.
        if n == 40 {
            assert_eq!(estimate(&terms, &groups, Link::Identity).ci95, Some(wilson(0.0, 10.0)));
        }
    }
    // Groups that all lost one of two items, and subjects that are all right or all wrong.
    let half = plain(&[1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
    let pairs = design(None, Some(&[0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]));
    let none = plain(&[0.0; 8]);
    let lost = paired_difference(&half, &none, &pairs, Link::Identity);
    assert!(is_doubtful(lost) && lost.ci95 == Some(tango(2.0, 0.0, 4.0)), "{lost:?}");
    let subjects = design(Some(&[0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]), None);
    assert!(is_doubtful(mean_over_parts(&half, &subjects).unwrap()) && is_doubtful(estimate(&half, &subjects, Link::Identity)));
    // Perplexities are unbounded, so that equal texts do not show how much others would vary.
    let texts = plain(&[2.5; 6]);
    assert_eq!(estimate(&texts, &ALONE, Link::Exp).ci95, None);
    assert_eq!(paired_difference(&texts, &texts, &ALONE, Link::Exp).ci95, None);
}

#[test]
fn a_row_ends_where_another_begins() {
    let mut row = PerRow::<u64>::default();
    assert_eq!(row.end(), None, "no row was begun");
    // Row 0 has two tokens, row 7 one, and row 3 one that adds nothing.
    let ended: Vec<Option<u64>> = [(0, 1), (0, 2), (7, 4), (3, 0)]
        .map(|(number, value)| {
            let ended = row.go_to(number);
            row.sums += value;
            ended
        })
        .to_vec();
    assert_eq!(ended, [None, None, Some(3), Some(4)]);
    assert_eq!((row.end(), row.end()), (Some(0), None));
}

#[test]
fn flips_in_groups_by_hand() {
    // Two groups that gained two each: of the four equally likely sums -4, 0, 0, 4, two are as extreme.
    assert_eq!(sign_flip(&[2, 0, 2]), 0.5);
    assert_eq!((sign_flip(&[]), sign_flip(&[3, -3])), (1.0, 1.0));
    // With single items, the test equals McNemar's.
    let nets: Vec<i64> = [1; 9].into_iter().chain([-1; 3]).collect();
    close(sign_flip(&nets), mcnemar_exact(3, 9), 1e-12);
    // 3 + 1 - 1: of the eight sums +-3 +-1 +-1, six are 3 or more in absolute value.
    assert_eq!(sign_flip(&[3, 1, -1]), 0.75);
}

const MCNEMAR: [f64; 4] = [0.143463134765625, 0.021484375, 0.0992558700573967, 0.0012427867782632013];
const HOLM: [f64; 5] = [0.04, 0.09, 0.09, 0.025, 0.5];
const SEM: f64 = 0.06664192862581393;
const BOOTSTRAP: [f64; 2] = [0.768929, 1.02607];
const PAIRED_SEM: f64 = 0.01486500060768439;
const PAIRED_BOOTSTRAP: [f64; 2] = [-0.0211161, 0.03625];
const EXP_BOOTSTRAP: [f64; 2] = [2.15745, 2.79008];
