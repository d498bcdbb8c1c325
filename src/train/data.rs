//! The training set in memory, and the sequences of each step.
//!
//! The order depends only on the seed and the epoch (a Fisher-Yates shuffle), so that a run can resume at any step. A source with
//! a weight appears that many times in each epoch: 0.5 means half of its rows, a different half each epoch, 2 means all rows
//! twice.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use crate::dataset::{Choice, Chosen, Dataset, Place};
use crate::error::{Error, Result};
use crate::format::part_of;
use crate::random;
use crate::tokens::{Audit, Renderer, Sequence, rendered};

/// Sequences with supervised tokens, and the held-out rows.
pub(crate) struct TrainingSet {
    /// The rows to train on, rendered and truncated.
    pub sequences: Vec<Sequence>,
    /// For each sequence, the index of its source in `sources`.
    source_of: Vec<usize>,
    /// The names of the sources.
    pub sources: Vec<String>,
    /// For each sequence, the name of its row in messages.
    pub names: Vec<RowName>,
    /// The weights of each sequence's targets, which follow from the weights of their turns; the inner list is empty if all are
    /// 1.
    pub target_weights: Vec<Vec<f32>>,
    /// The held-out rows.
    pub validation: Vec<Sequence>,
    /// The results of the mask audit over all rows.
    pub audit: Audit,
}

/// Identifies a row for people.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RowName {
    /// The file, and the line on which the row begins.
    pub place: Place,
    /// The row's own `id`, if it has one.
    pub id: Option<String>,
}

/// Determines the sequences of each epoch and their order.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    seed: u64,
    /// How often each sequence appears in an epoch on average.
    weights: Vec<f64>,
}

/// The steps of all epochs. If the lengths of epochs are random, they are counted only when needed, so that a run of any length
/// starts at once.
#[derive(Debug, Clone)]
pub(crate) struct Epochs {
    order: Order,
    /// Sequences per step.
    batch: usize,
    /// The steps per epoch, if all weights are whole numbers.
    alike: Option<u64>,
    /// Otherwise the step at which each epoch ends, for the epochs counted so far.
    ends: Vec<u64>,
}

/// The rows that are evaluated but not trained on.
#[derive(Clone, Copy)]
pub(crate) enum HeldOut<'a> {
    /// A share of the rows with supervised tokens, drawn by the seed, at least one row; 0 for none.
    Share(f64),
    /// The rows of another data set.
    Apart(&'a Dataset),
}

/// A row with supervised tokens.
struct Row {
    sequence: Sequence,
    source: String,
    name: RowName,
    target_weights: Vec<f32>,
}

impl TrainingSet {
    /// Reads and renders all rows, and sets the held-out ones aside.
    pub(crate) fn read(
        dataset: &Dataset,
        renderer: &Renderer,
        chosen: &Chosen,
        strict: bool,
        held_out: HeldOut,
        seed: u64,
        watch: &mut dyn FnMut(u64),
    ) -> Result<TrainingSet> {
        let (rows, audit) = read_rows(dataset, renderer, chosen, strict, watch)?;
        let mut set = TrainingSet {
            sequences: Vec::new(),
            source_of: Vec::new(),
            sources: Vec::new(),
            names: Vec::new(),
            target_weights: Vec::new(),
            validation: Vec::new(),
            audit,
        };
        let share = match held_out {
            HeldOut::Share(share) => share,
            HeldOut::Apart(apart) => {
                set.hold_out_apart(apart, &rows, renderer, strict, watch)?;
                0.0
            }
        };
        // Rows with equal tokens share the number of the first of them, so that the split never separates them.
        let mut firsts: HashMap<&[u32], u32> = HashMap::new();
        let numbers: Vec<u32> = rows.iter().map(|row| *firsts.entry(&row.sequence.ids).or_insert(row.sequence.row)).collect();
        let n_equal = rows.len() - firsts.len();
        if n_equal > 0 {
            set.audit.notes.push(format!(
                "{} equal to an earlier one{}",
                part_of(n_equal as u64, rows.len() as u64, "row", ["is", "are"]),
                if share > 0.0 { "; with --validation-share equal rows stay together" } else { ", and learnt again each time" }
            ));
        }
        let drawn = drawn(&numbers, share, seed);
        // A crawled data set may have a different source for every row, hence the map.
        let mut numbers_of: HashMap<_, usize> = HashMap::new();
        for (Row { sequence, source, name, target_weights }, is_drawn) in rows.into_iter().zip(drawn) {
            if is_drawn {
                set.validation.push(sequence);
                continue;
            }
            let number = *numbers_of.entry(source).or_insert_with_key(|source| {
                set.sources.push(source.clone());
                set.sources.len() - 1
            });
            set.source_of.push(number);
            set.names.push(name);
            set.target_weights.push(target_weights);
            set.sequences.push(sequence);
        }
        if set.sequences.is_empty() {
            let reasons = set.audit.lines().join("\n  ");
            return Err(Error::new("no token of this data set would be trained on: there is nothing to learn").cure(reasons));
        }
        Ok(set)
    }

    /// Holds out the rows of `apart`, except those whose tokens equal those of one of `rows`, which are trained on.
    fn hold_out_apart(
        &mut self,
        apart: &Dataset,
        rows: &[Row],
        renderer: &Renderer,
        strict: bool,
        watch: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let (mut held_out, audit) = read_rows(apart, renderer, &apart.choose(Choice::All)?, strict, watch)?;
        self.audit.notes.extend(audit.lines().iter().map(|line| format!("--validation: {line}")));
        let n = held_out.len();
        let trained: HashSet<&[u32]> = rows.iter().map(|row| row.sequence.ids.as_slice()).collect();
        held_out.retain(|row| !trained.contains(row.sequence.ids.as_slice()));
        if held_out.is_empty() {
            let names: Vec<String> = apart.files().iter().map(|file| file.path.display().to_string()).collect();
            return Err(Error::new(match n {
                0 => format!("no token of --validation {} would be evaluated", names.join(" ")),
                _ => format!("no row of --validation {} differs from those that are trained on", names.join(" ")),
            })
            .cure("Provide rows that are not in the training data, or hold some of those out with --validation-share."));
        }
        if held_out.len() < n {
            self.audit.notes.push(format!(
                "--validation: {} among the rows that are trained on, and left out of the held-out loss",
                part_of((n - held_out.len()) as u64, n as u64, "row", ["is", "are"])
            ));
        }
        self.validation = held_out.into_iter().map(|row| row.sequence).collect();
        Ok(())
    }

    /// The order of the epochs; `mix` gives sources weights other than 1.
    pub(crate) fn order(&self, mix: &BTreeMap<String, f64>, seed: u64) -> Result<Order> {
        if let Some(unknown) = mix.keys().find(|name| !self.sources.contains(name)) {
            return Err(Error::usage(format!("--mix names `{unknown}`, but no row has this source"))
                .cure(format!("The sources are: {}.", self.sources.join(", "))));
        }
        let weight = |&source: &usize| mix.get(&self.sources[source]).copied().unwrap_or(1.0);
        let order = Order { seed, weights: self.source_of.iter().map(weight).collect() };
        if order.epoch(0).is_empty() {
            return Err(Error::usage(format!("the weights of --mix leave no rows to train on: {mix:?}"))
                .cure("Give a weight above 0 to a source that has rows."));
        }
        Ok(order)
    }

    /// Which sequences belong to the rows that `names` name, by source, by the row's id or as `file:line`. Returns an error for a
    /// name without a match.
    pub(crate) fn named(&self, names: &[String]) -> Result<Vec<bool>> {
        let mut named = vec![false; self.sequences.len()];
        for name in names {
            let mut found = false;
            for (index, row) in self.names.iter().enumerate() {
                if self.sources[self.source_of[index]] == *name || row.is_called(name) {
                    (named[index], found) = (true, true);
                }
            }
            if !found {
                return Err(Error::usage(format!("no training row is called `{name}`"))
                    .cure("Name a source (as --mix does), a row's own id, or a place such as edits.jsonl:17."));
            }
        }
        Ok(named)
    }

    pub(crate) fn supervised_tokens(&self) -> u64 {
        self.sequences.iter().map(|sequence| sequence.n_targets() as u64).sum()
    }
}

/// The chosen rows with supervised tokens, and the audit of all rows.
fn read_rows(
    dataset: &Dataset,
    renderer: &Renderer,
    chosen: &Chosen,
    strict: bool,
    watch: &mut dyn FnMut(u64),
) -> Result<(Vec<Row>, Audit)> {
    let (mut rows, mut audit, mut records) = (Vec::new(), Audit::of(dataset), 0);
    for chunk in rendered(dataset, renderer, 0, chosen) {
        for item in chunk? {
            records += 1;
            let Some(rendered) = audit.take(item.row, &item.place, item.rendered, strict)? else { continue };
            // Training does not need the spans, which serve the maps.
            let sequence = Sequence { spans: Vec::new(), ..rendered.sequence };
            if !sequence.has_targets() {
                continue;
            }
            let (source, id) = item.example.map(|example| (example.source, example.id)).unwrap_or_default();
            let all_alike = rendered.target_weights.iter().all(|&weight| weight == 1.0);
            let target_weights = if all_alike { Vec::new() } else { rendered.target_weights };
            rows.push(Row { sequence, source, name: RowName { place: item.place, id }, target_weights });
        }
        watch(records);
    }
    Ok((rows, audit))
}

/// Which of the rows with these numbers are held out; never all of them. The draw of a row depends only on its number, so that
/// adding rows to a file leaves most others on their side of the split.
fn drawn(rows: &[u32], share: f64, seed: u64) -> Vec<bool> {
    if share == 0.0 {
        return vec![false; rows.len()];
    }
    let n = ((share * rows.len() as f64).round() as usize).max(1).min(rows.len().saturating_sub(1));
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_cached_key(|&index| random::stream(seed ^ VALIDATION, u64::from(rows[index])).next());
    // Equal rows have the same number and are adjacent in this order: the cut must not separate them.
    let is_cut_through = |n: usize| (1..order.len()).contains(&n) && rows[order[n]] == rows[order[n - 1]];
    let up = (n..=order.len()).find(|&n| !is_cut_through(n)).filter(|&n| n < order.len());
    let n = up.or_else(|| (0..=n).rev().find(|&n| !is_cut_through(n))).unwrap_or(0);
    let mut held_out = vec![false; rows.len()];
    order[..n].iter().for_each(|&index| held_out[index] = true);
    held_out
}

impl RowName {
    fn is_called(&self, name: &str) -> bool {
        let at = |(path, line): (&str, &str)| {
            // Matches the file name, and as many of its parent folders as are given.
            line.parse() == Ok(self.place.line) && self.place.path.ends_with(path)
        };
        self.id.as_deref() == Some(name) || name.rsplit_once(':').is_some_and(at)
    }
}

impl fmt::Display for RowName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        self.id.as_ref().map_or(Ok(()), |id| write!(f, " (id {id})"))
    }
}

impl Order {
    /// The indices of an epoch's sequences, in training order.
    pub(crate) fn epoch(&self, epoch: u64) -> Vec<u32> {
        let mut order = Vec::new();
        let mut random = random::stream(self.seed, epoch);
        for (index, &weight) in self.weights.iter().enumerate() {
            let whole = weight.floor();
            let times = whole as usize + usize::from(random.unit() < weight - whole);
            order.extend(std::iter::repeat_n(index as u32, times));
        }
        for i in (1..order.len()).rev() {
            order.swap(i, random.below_u64(i as u64 + 1) as usize);
        }
        order
    }
}

impl Epochs {
    pub(crate) fn new(order: Order, batch: usize) -> Epochs {
        let are_whole = order.weights.iter().all(|weight| weight.fract() == 0.0);
        let alike = are_whole.then(|| steps_of(&order, 0, batch));
        Epochs { order, batch, alike, ends: Vec::new() }
    }

    /// The indices of an epoch's sequences, in training order.
    pub(crate) fn order(&self, epoch: u64) -> Vec<u32> {
        self.order.epoch(epoch)
    }

    /// The number of steps in the first epoch.
    pub(crate) fn first(&mut self) -> u64 {
        self.end(0)
    }

    /// The step at which an epoch ends.
    fn end(&mut self, epoch: u64) -> u64 {
        if let Some(steps) = self.alike {
            return (epoch + 1).saturating_mul(steps);
        }
        while self.ends.len() as u64 <= epoch {
            let next = self.ends.len() as u64;
            self.ends.push(self.ends.last().copied().unwrap_or(0) + steps_of(&self.order, next, self.batch));
        }
        self.ends[epoch as usize]
    }

    /// The number of steps in `epochs` epochs; the last one may be a fraction, which is rounded up to a whole step. If all epochs
    /// have the same length, the product is computed as in Transformers, so that 1.1 epochs of 10 steps are 11 steps, although
    /// `1.1 - 1.0` is more than a tenth.
    pub(crate) fn steps(&mut self, epochs: f64) -> u64 {
        let Some(last) = (epochs.ceil() as u64).checked_sub(1) else { return 0 };
        let begin = last.checked_sub(1).map_or(0, |before| self.end(before));
        let steps = self.end(last) - begin;
        begin + ((epochs * steps as f64).ceil() as u64).saturating_sub(last.saturating_mul(steps))
    }

    /// The epoch of a step, both counted from 0, and the step at which that epoch begins.
    pub(crate) fn of_step(&mut self, step: u64) -> (u64, u64) {
        if let Some(steps) = self.alike {
            let epoch = step / steps.max(1);
            return (epoch, epoch * steps);
        }
        while self.ends.last().is_none_or(|&end| end <= step) {
            self.end(self.ends.len() as u64);
        }
        let epoch = self.ends.partition_point(|&end| end <= step);
        (epoch as u64, epoch.checked_sub(1).map_or(0, |before| self.ends[before]))
    }

    /// Does an epoch end after this many steps?
    pub(crate) fn ends_after(&mut self, steps: u64) -> bool {
        steps > 0 && self.of_step(steps).1 == steps
    }
}

/// The number of steps of `batch` sequences in an epoch.
fn steps_of(order: &Order, epoch: u64, batch: usize) -> u64 {
    order.epoch(epoch).len().div_ceil(batch) as u64
}

/// Separates the draws of held-out rows from those of the order.
const VALIDATION: u64 = 0x7661_6c69_6461_7465;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_sees_every_sequence_once_in_an_order_of_its_own() {
        let order = Order { seed: 7, weights: vec![1.0; 100] };
        let (first, second) = (order.epoch(0), order.epoch(1));
        let sorted = |mut order: Vec<u32>| {
            order.sort_unstable();
            order
        };
        assert_eq!(sorted(first.clone()), (0..100).collect::<Vec<u32>>());
        assert_eq!(sorted(second.clone()), (0..100).collect::<Vec<u32>>());
        assert!(first != second && first != (0..100).collect::<Vec<u32>>());
        assert_eq!(first, order.epoch(0));
        assert_ne!(first, Order { seed: 8, ..order.clone() }.epoch(0));
        let mut fours = Epochs::new(order.clone(), 32);
        assert_eq!([0, 3, 4, 7, 8].map(|step| fours.of_step(step)), [(0, 0), (0, 0), (1, 4), (1, 4), (2, 8)]);
        assert_eq!([0, 3, 4, 5, 8].map(|steps| fours.ends_after(steps)), [false, false, true, false, true]);
        // 2.5 epochs end within the third, half an epoch within the first; a fraction of a step counts as one.
        assert_eq!([1.0, 2.0, 2.5, 2.6, 0.5].map(|epochs| fours.steps(epochs)), [4, 8, 10, 11, 2]);
        // Transformers' math.ceil(epochs * steps), with the same floating-point arithmetic.
        let mut tens = Epochs::new(order, 10);
        assert_eq!([1.1, 2.2, 2.15, 0.3].map(|epochs| tens.steps(epochs)), [11, 22, 22, 3]);
    }

    #[test]
    fn epochs_are_counted_when_they_are_asked_for() {
        let mut whole = Epochs::new(Order { seed: 7, weights: vec![2.0; 8] }, 5);
        assert_eq!(
            (whole.first(), whole.steps(1e12), whole.of_step(4_000_000_000_001)),
            (4, 4_000_000_000_000, (1_000_000_000_000, 4_000_000_000_000))
        );
        // The lengths of these epochs are random: each equals that of its order, and a step causes only the epochs before it to
        // be counted.
        let order = Order { seed: 7, weights: vec![0.4; 8] };
        let mut drawn = Epochs::new(order.clone(), 1);
        let lengths: Vec<u64> = (0..40).map(|epoch| order.epoch(epoch).len() as u64).collect();
        assert!(lengths.iter().any(|&n| n != lengths[0]), "{lengths:?}");
        let (mut begin, mut step) = (0, 0);
        for (epoch, &n) in (0..).zip(&lengths) {
            for _ in 0..n {
                assert_eq!(drawn.of_step(step), (epoch, begin));
                step += 1;
            }
            begin += n;
            assert!(drawn.ends_after(begin) || n == 0);
            assert!(drawn.ends.len() <= epoch as usize + 20, "{} of {epoch}", drawn.ends.len());
        }
        assert_eq!(drawn.steps(3.0), lengths[..3].iter().sum::<u64>());
        assert_eq!(
            Epochs::new(order, 1).steps(2.5),
            lengths[..2].iter().sum::<u64>() + (2.5 * lengths[2] as f64).ceil() as u64 - 2 * lengths[2]
        );
    }

    #[test]
    fn the_share_held_out_is_exact() {
        let rows: Vec<u32> = (0..40).map(|i| 3 * i).collect();
        let count = |share, seed| drawn(&rows, share, seed).into_iter().filter(|&out| out).count();
        assert_eq!((count(0.0, 1), count(0.001, 1), count(0.25, 1), count(0.27, 1), count(0.999, 1)), (0, 1, 10, 11, 39));
        assert_ne!(drawn(&rows, 0.25, 1), drawn(&rows, 0.25, 2));
        assert_eq!(drawn(&[7], 0.5, 1), [false]);
        // The rows held out of fewer rows are also held out of more, except those that new rows displace.
        let (fewer, more) = (drawn(&rows[..36], 0.25, 1), drawn(&rows, 0.25, 1));
        assert!(fewer.iter().zip(&more).filter(|(fewer, more)| fewer != more).count() <= 4);
        assert!(drawn(&[], 0.5, 1).is_empty());
    }

    #[test]
    fn equal_rows_stay_on_one_side() {
        let rows: Vec<u32> = (0..60).map(|i| i % 20).collect();
        for seed in 0..50 {
            let held_out = drawn(&rows, 0.2, seed);
            let side = |number: u32| -> Vec<bool> { (0..60).filter(|&i| rows[i] == number).map(|i| held_out[i]).collect() };
            assert!((0..20).all(|number| side(number).windows(2).all(|pair| pair[0] == pair[1])));
            let n = held_out.iter().filter(|&&out| out).count();
            assert!((12..=14).contains(&n), "{n}");
        }
        assert_eq!(drawn(&[3, 3, 3], 0.5, 1), [false; 3]);
    }

    #[test]
    fn weights_are_how_often_a_sequence_appears() {
        let weights: Vec<f64> = [0.0, 0.5, 1.0, 2.5].into_iter().flat_map(|weight| [weight; 1000]).collect();
        let order = Order { seed: 1, weights };
        let mut counts = [0usize; 4];
        order.epoch(3).iter().for_each(|&index| counts[index as usize / 1000] += 1);
        assert_eq!((counts[0], counts[2]), (0, 1000));
        // Four standard deviations of a thousand draws with probability a half.
        assert!(counts[1].abs_diff(500) < 64 && counts[3].abs_diff(2500) < 64, "{counts:?}");
    }
}
