//! Progress on stderr: bars on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::output;
use crate::dataset::DataFile;
use crate::error::{Context, Result};
use crate::jobs::watch::{Beginning, Watch};
use crate::tokens::Audit;
use crate::train::metrics::StepMetrics;

pub(super) struct Terminal {
    bar: Mutex<Option<ProgressBar>>,
    is_terminal: bool,
    /// When the last line was written to something that is not a terminal.
    last_line: Mutex<Instant>,
    interrupted: Arc<AtomicBool>,
}

/// In a log file, one line of progress in this time is enough.
const LINE_INTERVAL: Duration = Duration::from_secs(30);

impl Terminal {
    pub(super) fn new() -> Terminal {
        Terminal {
            bar: Mutex::new(None),
            is_terminal: std::io::stderr().is_terminal(),
            last_line: Mutex::new(Instant::now()),
            interrupted: Arc::default(),
        }
    }

    /// The same; an interrupt is noted, for the work to end where it can be taken up again, and a second one ends it at once.
    pub(super) fn heeding_interrupts() -> Result<Terminal> {
        use signal_hook::consts::{SIGINT, SIGTERM};
        let terminal = Terminal::new();
        for signal in [SIGINT, SIGTERM] {
            // In this order: the second signal finds the flag set.
            signal_hook::flag::register_conditional_shutdown(signal, 130, terminal.interrupted.clone())
                .and_then(|_| signal_hook::flag::register(signal, terminal.interrupted.clone()))
                .context("cannot listen for interrupts")?;
        }
        Ok(terminal)
    }

    /// Shows `done` of `total` (`u64::MAX` if that is not known) under `what`; a new `what` begins a new bar.
    fn show(&self, what: &str, done: u64, total: u64, style: &str) {
        if !self.is_terminal {
            return self.line(what, done, total);
        }
        let Ok(mut bar) = self.bar.lock() else { return };
        if bar.as_ref().is_none_or(|bar| bar.message() != what) {
            let new = ProgressBar::new(total).with_message(what.to_owned());
            if let Ok(style) = ProgressStyle::with_template(style) {
                new.set_style(style.progress_chars("━━─"));
            }
            if let Some(old) = bar.replace(new) {
                old.finish_and_clear();
            }
        }
        if let Some(bar) = bar.as_ref() {
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

    /// A line for people, in the bar's place.
    pub(super) fn say(&self, line: &str) {
        self.clear();
        output::say(line);
    }

    fn clear(&self) {
        if let Ok(mut bar) = self.bar.lock()
            && let Some(bar) = bar.take()
        {
            bar.finish_and_clear();
        }
    }
}

impl Watch for Terminal {
    fn fetching(&self, what: &str, done: u64, total: u64) {
        self.show(what, done, total, "{msg} {bar:30.cyan} {bytes} of {total_bytes}, {eta} left");
    }

    fn opened(&self, files: &[DataFile]) {
        self.clear();
        for file in files {
            eprintln!("Reading {} ({})", file.path.display(), file.format);
        }
    }

    fn reading(&self, records: u64) {
        // The number of records is not known before the end: a spinner's worth of news.
        self.show("Checking the mask", records, u64::MAX, "{msg}: {pos} rows");
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
        eprintln!(
            "Scoring {} supervised tokens of {} in {} rows with {} on {} -> {}",
            beginning.supervised,
            beginning.tokens,
            beginning.rows,
            beginning.model,
            beginning.device,
            beginning.out.display()
        );
    }

    fn tokens(&self, what: &str, done: u64, total: u64) {
        self.show(what, done, total, "{msg} {bar:30.cyan} {percent} %, {per_sec} tokens, {eta} left");
    }

    fn answers(&self, done: u64, total: u64, tokens_per_second: f64) {
        let rate = format!("{tokens_per_second:.0} tokens/s");
        if self.is_terminal {
            self.show("Writing", done, total, "{msg} {bar:30.cyan} {pos} of {len} answers, {eta} left  {prefix}");
            if let Ok(bar) = self.bar.lock()
                && let Some(bar) = bar.as_ref()
            {
                bar.set_prefix(rate);
            }
            return;
        }
        let Ok(mut last) = self.last_line.lock() else { return };
        if last.elapsed() >= LINE_INTERVAL || done == total {
            *last = Instant::now();
            eprintln!("{done} of {total} answers, {rate}");
        }
    }

    fn trains(&self, out: &Path, done: u64, total: u64) {
        self.say(&format!("Run folder {}", out.display()));
        if done > 0 {
            self.say(&format!("Going on after step {done} of {total}"));
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
            self.show("Training", metrics.step, total, "{msg} {bar:30.cyan} {pos} of {len} steps, {eta} left  {prefix}");
            if let Ok(bar) = self.bar.lock()
                && let Some(bar) = bar.as_ref()
            {
                bar.set_prefix(news);
            }
            return;
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
            self.show(what, 0, 1, "{msg} ..");
        }
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
