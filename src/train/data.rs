//! The training set in memory, and the sequences of each step.
//!
//! The order depends only on the seed and the epoch (a Fisher-Yates shuffle), so that a run can resume at any step. A source with
//! a weight appears that many times in each epoch: 0.5 means half of its rows, and the other half in the next epoch, 2 means all
//! rows twice.

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
    sequences: Vec<Weighted>,
}

/// How often a sequence appears.
#[derive(Debug, Clone)]
struct Weighted {
    /// How often in an epoch, on average.
    weight: f64,
    /// Its place in a random order of its source's sequences, of which each epoch takes as many as the weight's fraction says, from
    /// where the epoch before ended.
    place: u64,
    /// The number of its source's sequences.
    n_source: u64,
}

/// The steps of all epochs. If epochs differ in length, they are counted only when needed, so that a run of any length starts at
/// once.
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
        if share > 0.0 && !rows.is_empty() && !drawn.contains(&true) {
            return Err(Error::usage(format!(
                "--validation-share {share} can hold out no row: {}",
                match rows.len() {
                    1 => "one row is learnt from",
                    _ => "all rows are equal",
                }
            ))
            .cure("Leave it out, or name rows that are not trained on with --validation."));
        }
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
        let weights: Vec<f64> = self.sources.iter().map(|source| mix.get(source).copied().unwrap_or(1.0)).collect();
        let order = Order::new(seed, &self.source_of, &weights);
        if order.epoch(0).is_empty() {
            return Err(Error::usage(format!("the weights of --mix leave no rows to train on: {mix:?}"))
                .cure("Give a weight above 0 to a source that has rows."));
        }
        Ok(order)
    }

    /// Which sequences belong to the rows that `names` name, by source, by the row's id or as `file:line`. Returns an error for a
    /// name without a match.
    pub(crate) fn named(&self, names: &[String]) -> Result<Vec<bool>> {
        let mut of_text: HashMap<&str, Vec<usize>> = HashMap::new();
        let mut of_line: HashMap<u64, Vec<usize>> = HashMap::new();
        for (index, row) in self.names.iter().enumerate() {
            let source = self.sources[self.source_of[index]].as_str();
            std::iter::once(source).chain(row.id.as_deref()).for_each(|name| of_text.entry(name).or_default().push(index));
            of_line.entry(row.place.line).or_default().push(index);
        }
        let mut named = vec![false; self.sequences.len()];
        for name in names {
            let by_text = of_text.get(name.as_str()).into_iter().flatten().copied();
            let place = name.rsplit_once(':').and_then(|(path, line)| Some((path, line.parse::<u64>().ok()?)));
            // Matches the file name, and as many of its parent folders as are given.
            let by_place = place.into_iter().flat_map(|(path, line)| {
                let of_line = of_line.get(&line).into_iter().flatten().copied();
                of_line.filter(move |&index| self.names[index].place.path.ends_with(path))
            });
            let found: Vec<usize> = by_text.chain(by_place).collect();
            if found.is_empty() {
                return Err(Error::usage(format!("no training row is called `{name}`"))
                    .cure("Name a source (as --mix does), a row's own id, or a place such as edits.jsonl:17."));
            }
            found.into_iter().for_each(|index| named[index] = true);
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

/// Which of the rows with these numbers are held out; never all of them, and none only if all are equal. The draw of a row depends
/// only on its number, so that adding rows to a file leaves most others on their side of the split.
fn drawn(rows: &[u32], share: f64, seed: u64) -> Vec<bool> {
    let mut held_out = vec![false; rows.len()];
    if share == 0.0 {
        return held_out;
    }
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_cached_key(|&index| random::stream(seed ^ VALIDATION, u64::from(rows[index])).next());
    let wanted = ((share * rows.len() as f64).round() as usize).max(1);
    // Rows with the same number are adjacent in this order and stay together: they are taken if that comes nearer to the share.
    let alike: Vec<&[usize]> = order.chunk_by(|&a, &b| rows[a] == rows[b]).collect();
    let mut taken = Vec::new();
    let mut n = 0;
    for rows_alike in &alike {
        let with = n + rows_alike.len();
        if with.abs_diff(wanted) < n.abs_diff(wanted) && with < rows.len() {
            taken.push(rows_alike);
            n = with;
        }
    }
    let fewest = alike.iter().min_by_key(|rows_alike| rows_alike.len()).filter(|_| taken.is_empty() && alike.len() > 1);
    taken.into_iter().chain(fewest).flat_map(|rows_alike| rows_alike.iter()).for_each(|&index| held_out[index] = true);
    held_out
}

impl fmt::Display for RowName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        self.id.as_ref().map_or(Ok(()), |id| write!(f, " (id {id})"))
    }
}

impl Order {
    /// `source_of` is the index of each sequence's source in `weights`.
    fn new(seed: u64, source_of: &[usize], weights: &[f64]) -> Order {
        let mut members = vec![Vec::new(); weights.len()];
        source_of.iter().enumerate().for_each(|(index, &source)| members[source].push(index));
        let of_source = |&source: &usize| Weighted { weight: weights[source], place: 0, n_source: members[source].len() as u64 };
        let mut sequences: Vec<Weighted> = source_of.iter().map(of_source).collect();
        for (source, members) in members.iter().enumerate() {
            let places = random::order(random::stream(seed ^ PLACES, source as u64).next(), members.len() as u32);
            members.iter().zip(places).for_each(|(&index, place)| sequences[index].place = u64::from(place));
        }
        Order { seed, sequences }
    }

    /// The indices of an epoch's sequences, in training order.
    pub(crate) fn epoch(&self, epoch: u64) -> Vec<u32> {
        let mut order = Vec::new();
        for (index, sequence) in self.sequences.iter().enumerate() {
            order.extend(std::iter::repeat_n(index as u32, sequence.times(epoch)));
        }
        let mut random = random::stream(self.seed, epoch);
        for i in (1..order.len()).rev() {
            order.swap(i, random.below_u64(i as u64 + 1) as usize);
        }
        order
    }
}

impl Weighted {
    /// How often the sequence appears in an epoch.
    fn times(&self, epoch: u64) -> usize {
        let whole = self.weight.floor();
        let per_epoch = (self.weight - whole) * self.n_source as f64;
        // Rounded up, so that the first epoch has a row of each source, but not for a product that is off by its last digits.
        let taken_before = |epoch: u64| (epoch as f64 * per_epoch - 1e-6).ceil() as u64;
        let (begin, end) = (taken_before(epoch), taken_before(epoch + 1));
        let is_taken = (self.place + self.n_source - begin % self.n_source) % self.n_source < end - begin;
        whole as usize + usize::from(is_taken)
    }
}

impl Epochs {
    pub(crate) fn new(order: Order, batch: usize) -> Epochs {
        let are_whole = order.sequences.iter().all(|sequence| sequence.weight.fract() == 0.0);
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
/// Separates the orders of the sources' sequences from that of an epoch.
const PLACES: u64 = 0x706c_6163_6573_0000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_sees_every_sequence_once_in_an_order_of_its_own() {
        let order = Order::new(7, &[0; 100], &[1.0]);
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
        let mut whole = Epochs::new(Order::new(7, &[0; 8], &[2.0]), 5);
        assert_eq!(
            (whole.first(), whole.steps(1e12), whole.of_step(4_000_000_000_001)),
            (4, 4_000_000_000_000, (1_000_000_000_000, 4_000_000_000_000))
        );
        // Epochs of 4, 3, 3, 3, 3 sequences: a step causes only the epochs before it to be counted.
        let order = Order::new(7, &[0; 8], &[0.4]);
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
            assert_eq!(n, 12);
        }
        assert_eq!(drawn(&[3, 3, 3], 0.5, 1), [false; 3]);
        // Ten equal rows would be more than is asked for, one of the others is not; the smaller of two groups is nearer to it.
        let rows: Vec<u32> = [vec![0; 10], (1..9).collect()].concat();
        let n_drawn = |rows: &[u32], seed: u64| drawn(rows, 0.05, seed).iter().filter(|&&out| out).count();
        assert!((0..50).all(|seed| n_drawn(&rows, seed) == 1 && n_drawn(&[1, 1, 1, 2, 2, 2, 2], seed) == 3));
    }

    #[test]
    fn weights_are_how_often_a_sequence_appears() {
        let weights = [0.0, 0.5, 1.0, 2.5, 0.3];
        let source_of: Vec<usize> = (0..50).map(|index| index % 5).collect();
        let order = Order::new(1, &source_of, &weights);
        let mut total = vec![0; 50];
        for epoch in 0..20 {
            let mut counts = [0; 5];
            for index in order.epoch(epoch) {
                counts[index as usize % 5] += 1;
                total[index as usize] += 1;
            }
            assert_eq!(counts, [0, 5, 10, 25, 3], "in epoch {epoch}");
            // After two epochs, each half has been seen once.
            if epoch == 1 {
                assert!((0..50).filter(|index| index % 5 == 1).all(|index| total[index] == 1));
            }
        }
        let expected = |index: usize| (20.0 * weights[index % 5]) as usize;
        assert!((0..50).all(|index| total[index] == expected(index)), "{total:?}");
        // Two orders of a source have other halves.
        let half = |seed: u64| Order::new(seed, &[0; 40], &[0.5]).epoch(0).into_iter().collect::<HashSet<u32>>();
        assert_ne!(half(1), half(2));
        // A weight that takes less than a row of its source takes one now and then, and the first at once.
        let rare = Order::new(1, &[0; 5], &[0.1]);
        let lengths: Vec<usize> = (0..6).map(|epoch| rare.epoch(epoch).len()).collect();
        assert_eq!(lengths, [1, 0, 1, 0, 1, 0]);
    }
}
