//! Shows progress on stderr: bars on a terminal, and occasional lines elsewhere.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use super::output;
use crate::dataset::DataFile;
use crate::error::{Context, Result};
use crate::format::{count, thousands};
use crate::jobs::watch::{Beginning, Watch};
use crate::tokens::Audit;
use crate::train::metrics::StepMetrics;

pub(super) struct Terminal {
    bar: Mutex<Option<(ProgressBar, Pace)>>,
    is_terminal: bool,
    /// When the last line was written, if stderr is not a terminal.
    last_line: Mutex<Instant>,
    /// Whether an interrupt ends the program at once.
    at_once: Arc<AtomicBool>,
    interrupted: Arc<AtomicBool>,
    /// Whether the user has been told that an interrupt was noted.
    said: AtomicBool,
}

/// Two signals within this time are one interrupt: a notebook sends it to the whole process group, and the Python module passes it on.
const ONE_INTERRUPT: Duration = Duration::from_millis(500);

/// The time between lines of progress in a log file.
const LINE_INTERVAL: Duration = Duration::from_secs(30);

impl Terminal {
    pub(super) fn new() -> Terminal {
        Terminal {
            bar: Mutex::new(None),
            is_terminal: std::io::stderr().is_terminal(),
            last_line: Mutex::new(Instant::now()),
            at_once: Arc::new(AtomicBool::new(true)),
            interrupted: Arc::default(),
            said: AtomicBool::new(false),
        }
    }

    /// Like `new`, but while the job heeds interrupts, the first one is noted, so that the job can stop where it can resume; a second one ends the
    /// program at once.
    pub(super) fn heeding_interrupts() -> Result<Terminal> {
        use signal_hook::consts::{SIGINT, SIGTERM};
        let terminal = Terminal::new();
        let is_second = Arc::<AtomicBool>::default();
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_default(signal, terminal.at_once.clone())
                .and_then(|_| signal_hook::flag::register_conditional_shutdown(signal, 130, is_second.clone()))
                .and_then(|_| signal_hook::flag::register(signal, terminal.interrupted.clone()))
                .context("cannot listen for interrupts")?;
        }
        let interrupted = terminal.interrupted.clone();
        std::thread::spawn(move || {
            while !interrupted.load(Ordering::SeqCst) {
                std::thread::sleep(ONE_INTERRUPT / 5);
            }
            std::thread::sleep(ONE_INTERRUPT);
            is_second.store(true, Ordering::SeqCst);
        });
        Ok(terminal)
    }

    /// Shows `done` of `total` (`u64::MAX` if unknown) under `what`; a new `what` begins a new bar. `news` computes the style's `{prefix}` from the
    /// rate per second and the remaining time, if known.
    fn show(&self, what: &str, done: u64, total: u64, style: &str, news: impl FnOnce(Option<f64>, &str) -> String) {
        if !self.is_terminal {
            return self.line(what, done, total);
        }
        let Ok(mut bar) = self.bar.lock() else { return };
        if bar.as_ref().is_none_or(|(bar, _)| bar.message() != what) {
            let new = ProgressBar::new(total).with_message(what.to_owned());
            if let Ok(style) = ProgressStyle::with_template(style) {
                new.set_style(style.progress_chars("━━─"));
            }
            if let Some((old, _)) = bar.replace((new, Pace { from: done, since: Instant::now() })) {
                old.finish_and_clear();
            }
        }
        if let Some((bar, pace)) = bar.as_ref() {
            let seconds = pace.since.elapsed().as_secs_f64();
            bar.set_prefix(news(pace.per_second(done, seconds), &pace.left(done, total, seconds)));
            bar.set_position(done);
            if done >= total {
                bar.finish_and_clear();
            }
        }
    }

    fn line(&self, what: &str, done: u64, total: u64) {
        let Ok(mut last) = self.last_line.lock() else { return };
        if last.elapsed() >= LINE_INTERVAL {
            *last = Instant::now();
            match total {
                u64::MAX => eprintln!("{what}: {done}"),
                _ => eprintln!("{what}: {:.0} %", 100.0 * done as f64 / total.max(1) as f64),
            }
        }
    }

    /// Prints a line in place of the bar.
    pub(super) fn say(&self, line: &str) {
        self.clear();
        output::say(line);
    }

    fn clear(&self) {
        if let Ok(mut bar) = self.bar.lock()
            && let Some((bar, _)) = bar.take()
        {
            bar.finish_and_clear();
        }
    }
}

/// The rate of progress, measured from the first report, which may include what an earlier run or a cache left.
struct Pace {
    from: u64,
    since: Instant,
}

impl Pace {
    /// Returns `None` until enough has been done to measure a rate.
    fn per_second(&self, done: u64, seconds: f64) -> Option<f64> {
        (done > self.from && seconds >= 0.5).then(|| (done - self.from) as f64 / seconds)
    }

    /// `, 3m left`, or nothing if unknown.
    fn left(&self, done: u64, total: u64, seconds: f64) -> String {
        // The rate is positive, and the remainder is less than 2^64 times it, so the seconds fit a duration.
        let left =
            self.per_second(done, seconds).map(|rate| Duration::try_from_secs_f64(total.saturating_sub(done) as f64 / rate));
        left.and_then(Result::ok).map_or_else(String::new, |left| format!(", {:#} left", HumanDuration(left)))
    }
}

/// `, 812 tokens/s`, or nothing if unknown.
fn tokens_per_second(rate: Option<f64>) -> String {
    rate.map_or_else(String::new, |rate| format!(", {} tokens/s", thousands(rate.round() as u64)))
}

impl Watch for Terminal {
    fn fetching(&self, what: &str, done: u64, total: u64) {
        self.show(what, done, total, "{msg} {bar:30.cyan} {bytes} of {total_bytes}{prefix}", |_, left| left.to_owned());
    }

    fn opened(&self, files: &[DataFile]) {
        self.clear();
        let of_file = |file: &DataFile| format!("Reading {} ({})", file.path.display(), file.format);
        output::of_files(files, of_file).iter().for_each(|line| output::say(line));
    }

    fn reading(&self, records: u64) {
        // The number of records is unknown before the end, so show a spinner.
        self.show("Checking the mask", records, u64::MAX, "{msg}: {pos} rows", |_, _| String::new());
    }

    fn audited(&self, audit: &Audit) {
        self.clear();
        audit.lines().iter().for_each(|line| output::say(line));
    }

    fn remarks(&self, model: &str, remarks: &[String]) {
        remarks.iter().for_each(|remark| self.say(&format!("{model}: {remark}")));
    }

    fn begins(&self, beginning: &Beginning) {
        self.clear();
        if let Some(reason) = beginning.passed_over {
            output::say(&format!("The GPU is not used: {reason}"));
        }
        output::say(&format!(
            "Scoring {} of {} in {} with {} on {} -> {}",
            count(beginning.supervised, "supervised token"),
            thousands(beginning.tokens),
            count(beginning.rows, "row"),
            beginning.model,
            beginning.device,
            beginning.out.display()
        ));
    }

    fn tokens(&self, what: &str, done: u64, total: u64) {
        if self.interrupted() && !self.said.swap(true, Ordering::SeqCst) {
            self.say("Interrupted: the current part is finished and kept; interrupt again to stop at once");
        }
        self.show(what, done, total, "{msg} {bar:30.cyan} {percent} %{prefix}", |rate, left| tokens_per_second(rate) + left);
    }

    fn answers(&self, done: u64, total: u64, tokens_per_second: f64) {
        let rate = format!("{tokens_per_second:.0} tokens/s");
        if self.is_terminal {
            let style = "{msg} {bar:30.cyan} {pos} of {len} answers{prefix}";
            return self.show("Writing", done, total, style, |_, left| format!("{left}  {rate}"));
        }
        let Ok(mut last) = self.last_line.lock() else { return };
        if last.elapsed() >= LINE_INTERVAL || done == total {
            *last = Instant::now();
            eprintln!("{done} of {total} answers, {rate}");
        }
    }

    fn trains(&self, out: &Path, what: &str, done: u64, total: u64) {
        self.say(&format!("Training with {what}"));
        self.say(&format!("Run folder {}", out.display()));
        if done > 0 {
            self.say(&format!("Resuming after step {done} of {total}"));
        }
    }

    fn step(&self, metrics: &StepMetrics, total: u64) {
        let news = format!(
            "loss {:.4}, cross-entropy {:.4}, accuracy {:.1} %, {:.0} tokens/s",
            metrics.loss,
            metrics.cross_entropy,
            100.0 * metrics.accuracy,
            metrics.tokens_per_second
        );
        if self.is_terminal {
            let style = "{msg} {bar:30.cyan} {pos} of {len} steps{prefix}";
            return self.show("Training", metrics.step, total, style, |_, left| format!("{left}  {news}"));
        }
        let Ok(mut last) = self.last_line.lock() else { return };
        if last.elapsed() >= LINE_INTERVAL || metrics.step == total || metrics.step == 1 {
            *last = Instant::now();
            eprintln!("step {} of {total}: {news}", metrics.step);
        }
    }

    fn stage(&self, what: &str) {
        self.clear();
        if self.is_terminal {
            self.show(what, 0, 1, "{msg} ..", |_, _| String::new());
        }
    }

    fn heeds_interrupts(&self, heeds: bool) {
        self.at_once.store(!heeds, Ordering::SeqCst);
    }

    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_before_the_first_report_was_not_done_now() {
        // A resumed run: 17,000 tokens existed, and 1,000 more take 4 seconds.
        let pace = Pace { from: 17_000, since: Instant::now() };
        let told = |done, seconds| tokens_per_second(pace.per_second(done, seconds)) + &pace.left(done, 20_000, seconds);
        assert_eq!(told(17_000, 0.0), "");
        assert_eq!(told(17_000, 9.0), "", "nothing was done yet");
        assert_eq!(told(17_500, 1e-6), "", "no time has passed yet");
        assert_eq!(told(18_000, 4.0), ", 250 tokens/s, 8s left");
        assert_eq!(told(20_000, 4.0), ", 750 tokens/s, 0s left");
        assert_eq!(Pace { from: 0, since: Instant::now() }.left(1, u64::MAX, f64::MAX), "", "longer than can be said");
        let fast = Pace { from: 0, since: Instant::now() };
        assert_eq!(tokens_per_second(fast.per_second(1_234_567, 1.0)), ", 1,234,567 tokens/s");
    }
}
