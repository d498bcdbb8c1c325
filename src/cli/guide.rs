//! Implements `diagnose guide`: shows the pages of the guide, which the program contains.

use super::output;
use crate::error::{Error, Result};

/// Show a page of the guide
///
/// Without a page, lists them all.
#[derive(clap::Args)]
pub(super) struct Args {
    /// data, models, reading, deciding, rollouts, evaluation, training, remote or speed
    page: Option<String>,
}

/// The pages, in reading order.
pub(super) const PAGES: [(&str, &str); 9] = [
    ("data", include_str!("../guide/data.md")),
    ("models", include_str!("../guide/models.md")),
    ("reading", include_str!("../guide/reading.md")),
    ("deciding", include_str!("../guide/deciding.md")),
    ("rollouts", include_str!("../guide/rollouts.md")),
    ("evaluation", include_str!("../guide/evaluation.md")),
    ("training", include_str!("../guide/training.md")),
    ("remote", include_str!("../guide/remote.md")),
    ("speed", include_str!("../guide/speed.md")),
];

pub(super) fn run(args: &Args) -> Result<()> {
    let Some(wanted) = &args.page else {
        let lines = PAGES.map(|(name, text)| format!("{name:<11}{}\n", title(text)));
        return output::print(&format!("{}`diagnose guide PAGE` shows one.\n", lines.concat()));
    };
    match PAGES.iter().find(|(name, _)| name == wanted) {
        Some((_, text)) => output::print(text),
        None => Err(Error::usage(format!("the guide has no page `{wanted}`"))
            .cure(format!("Its pages are {}.", PAGES.map(|(name, _)| name).join(", ")))),
    }
}

/// The heading of a page.
fn title(text: &str) -> &str {
    text.lines().next().unwrap_or_default().trim_start_matches("# ")
}
