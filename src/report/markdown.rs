//! Writes report.md, the report of a run with figures, tables and explanations of the numbers.

use std::fmt::Write;

use super::document::escaped;
use super::terminal::{OF_TEMPLATE, between, name, note};
use super::{isolated, quoted};
use crate::diagnosis::Report;
use crate::diagnosis::breakdown::Breakdown;
use crate::diagnosis::by_kind::{Kinds, Prompted, PromptedKind};
use crate::diagnosis::context::{InContext, Spot};
use crate::diagnosis::gate_preview::GatePreview;
use crate::diagnosis::planted::RankingQuality;
use crate::diagnosis::ranking::Ranking;
use crate::diagnosis::self_check::OnPolicy;
use crate::diagnosis::summary::Summary;
use crate::engine::TOP_K;
use crate::format::{
    ISOLATE, count, counted, harmless, n_tokens, number_with_interval, percent, percent_with_interval, thousands, visible,
};
use crate::table::Quadrant;

/// Where the numbers come from.
pub(crate) struct Origin {
    /// The command that made this report.
    pub command: String,
    /// The command that scored the data; differs from `command` only if the run was sorted again.
    pub scored_by: String,
    pub model: String,
    pub model_sha256: String,
    /// The names of the data files.
    pub data: String,
    /// The precision of the matrix products.
    pub dtype: String,
    /// The version of the program that scored the data, with its commit.
    pub version: String,
    /// The findings of the mask audit.
    pub audit: Vec<String>,
    /// Why sentences are missing, if they are.
    pub without_text: Option<String>,
    /// Which rows of the data were read, in a few words.
    pub rows: String,
    /// Records that were read.
    pub records: u64,
    /// Records with something to score.
    pub scored: u64,
    /// Tokens of the records with something to score.
    pub tokens: u64,
    pub tokens_per_second: f64,
}

/// The number of rows shown in the longer tables.
const SHOWN: usize = 12;
/// The number of sources shown: enough for the sets of a mix, but not for the addresses of a crawl.
const SOURCES_SHOWN: usize = 50;

/// Appends lines; writing to a String cannot fail.
macro_rules! add {
    ($text:expr, $($arguments:tt)*) => {{
        let _ = writeln!($text, $($arguments)*);
    }};
}

pub(crate) fn report(report: &Report, origin: &Origin) -> String {
    let summary = &report.summary;
    let mut text = String::new();
    head(&mut text, summary, origin);
    if let Some(bounded) = &report.bounded {
        add!(text, "## What is exact\n\n{}\n", bounded.sentences());
    }
    audit(&mut text, origin);
    quadrants(&mut text, summary);
    conflicts(&mut text, summary, origin.without_text.as_deref());
    if let Some(found) = &report.kinds {
        kinds(&mut text, found);
    }
    if let Some(planted) = &report.planted {
        rankings(&mut text, planted);
    }
    gates(&mut text, summary, report.bounded.is_some());
    breakdowns(&mut text, summary);
    if let Some(on_policy) = &report.on_policy {
        self_check(&mut text, on_policy);
    }
    calibration(&mut text, report);
    harmless(&text, &ISOLATE)
}

fn head(text: &mut String, summary: &Summary, origin: &Origin) {
    let overall = &summary.overall;
    let conflict = &overall.quadrants.confident_conflict;
    add!(text, "# {} as seen by {}\n", escaped(&origin.data), escaped(&origin.model));
    add!(
        text,
        "**{} of {}, {}, {}**: the model is sure of something else. {} {} of the loss and {} of the gradient of plain fine-tuning.\n",
        thousands(conflict.tokens),
        count(overall.tokens, "supervised token"),
        percent_with_interval(conflict.token_share, conflict.token_share_ci95),
        if conflict.tokens == 1 { "is a confident conflict" } else { "are confident conflicts" },
        if conflict.tokens == 1 { "It accounts for" } else { "They account for" },
        percent_with_interval(conflict.loss_share, conflict.loss_share_ci95),
        percent_with_interval(conflict.grad_share, conflict.grad_share_ci95)
    );
    add!(
        text,
        "In brackets: 95 % intervals over the {} with a supervised token, the range in which the number would fall for another \
         sample of as many whole rows from the same source (here: {}).\n",
        count(overall.rows, "row"),
        origin.rows
    );
    add!(text, "| | |\n|---|---|");
    add!(text, "| rows scored | {} of {} |", thousands(origin.scored), thousands(origin.records));
    add!(text, "| tokens, supervised tokens | {}, {} |", thousands(origin.tokens), thousands(overall.tokens));
    add!(text, "| perplexity | {:.3} |", overall.perplexity);
    add!(text, "| mean entropy | {:.3} nat |", overall.mean_entropy);
    add!(text, "| mean surplus (loss minus entropy) | {:.3} nat |", overall.mean_surplus);
    add!(text, "| thresholds | {} |", summary.thresholds);
    if let Some(between) = summary.tokens_between_groups {
        add!(text, "| tokens between the two entropy groups | {} |", thousands(between));
    }
    if summary.tokens_not_finite > 0 {
        add!(text, "| **tokens left out: not finite** | {} |", thousands(summary.tokens_not_finite));
    }
    add!(
        text,
        "| model | {} ({}), SHA-256 {} |",
        escaped(&origin.model),
        origin.dtype,
        &origin.model_sha256[..12.min(origin.model_sha256.len())]
    );
    add!(text, "| speed | {} per second |\n", n_tokens(origin.tokens_per_second.round() as u64));
    add!(text, "Made by diagnose {} with\n\n```\n{}\n```\n", origin.version, origin.command);
    if origin.scored_by != origin.command {
        add!(text, "from scores made with\n\n```\n{}\n```\n", origin.scored_by);
    }
}

fn audit(text: &mut String, origin: &Origin) {
    add!(text, "## The mask\n");
    match origin.audit.as_slice() {
        [] => add!(text, "The mask audit found no problems: every row has an answer, and every answer its end-of-turn token.\n"),
        findings => {
            for finding in findings {
                add!(text, "- {}", escaped(finding));
            }
            add!(text, "");
        }
    }
}

fn quadrants(text: &mut String, summary: &Summary) {
    add!(text, "## Where the tokens lie\n\n![entropy-probability density](maps/density.png)\n");
    add!(text, "| quadrant | tokens | share | of the loss | of the gradient |\n|---|---:|---:|---:|---:|");
    for quadrant in Quadrant::ALL {
        let cell = summary.overall.quadrants.get(quadrant);
        add!(
            text,
            "| {} | {} | {} | {} | {} |",
            name(quadrant),
            thousands(cell.tokens),
            percent_with_interval(cell.token_share, cell.token_share_ci95),
            percent_with_interval(cell.loss_share, cell.loss_share_ci95),
            percent_with_interval(cell.grad_share, cell.grad_share_ci95)
        );
    }
    add!(
        text,
        "\n- **Confident conflict** (low p, low H): the model is sure, and the data says something else. Wrong facts, broken templates, \
         a different tokenisation or style, or new knowledge that you want to teach: look at them before you train on them.\n\
         - **Uncertain** (low p, high H): the model does not know. This is what fine-tuning is for.\n\
         - **Confident** (high p, low H): what the model expected, nearly always its first choice; little to learn, little harm.\n\
         - **Hesitant** (high p, high H): one of several tokens that the model considered likely, usually its first choice.\n"
    );
    add!(text, "![gradient landscape](maps/gradient.png)\n\n![most frequent tokens](maps/tokens.png)\n");
}

fn conflicts(text: &mut String, summary: &Summary, without_text: Option<&str>) {
    add!(text, "## The conflicts\n");
    if let Some(reason) = without_text {
        add!(text, "The sentences cannot be shown: {}.\n", escaped(reason));
    }
    if summary.conflict_pairs.is_empty() {
        add!(text, "There are none with these thresholds.\n");
        return;
    }
    add!(text, "What the data says, and what the model was sure of instead:\n");
    add!(text, "| data | model | times | surplus, nat | worst example |\n|---|---|---:|---:|---|");
    for pair in summary.conflict_pairs.iter().take(SHOWN) {
        let (data, model, example) = (cell(&pair.token), cell(&pair.top), at(pair.example.as_ref()));
        add!(text, "| {data} | {model} | {} | {:.1} | {example} |", thousands(pair.count), pair.surplus);
    }
    add!(text, "\nThe rows with the most conflict mass (the sum of -ln p - H over their conflicts):\n");
    add!(text, "| row | where | conflicts | of tokens | mass, nat | worst example |\n|---:|---|---:|---:|---:|---|");
    for row in summary.conflict_rows.iter().take(SHOWN) {
        let id = row.id.as_deref().map_or(String::new(), |id| format!(" ({})", escaped(id)));
        add!(
            text,
            "| {} | {}:{}{id} | {} | {} | {:.1} | {} |",
            row.row,
            escaped(&row.path),
            row.line,
            row.conflicts,
            row.supervised,
            row.conflict_surplus,
            at(row.worst.as_ref())
        );
    }
    add!(
        text,
        "\nThe most surprising tokens, by {} (by how many standard deviations the loss exceeds what the model expected):\n",
        Ranking::DEFAULT.name()
    );
    add!(text, "| where | turn, bytes | sentence | model | p | entropy, nat | score |\n|---|---|---|---|---:|---:|---:|");
    for surprise in summary.surprises.iter().take(SHOWN) {
        add!(
            text,
            "| {}:{} | {}, {}..{} | {} | {} | {:.1e} | {:.2} | {:.1} |",
            escaped(&surprise.path),
            surprise.line,
            surprise.turn,
            surprise.begin,
            surprise.end,
            surprise.context.as_ref().map_or_else(|| cell(&surprise.token), sentence),
            cell(&surprise.top),
            surprise.logprob.exp(),
            surprise.entropy,
            surprise.score
        );
    }
    add!(text, "");
}

fn kinds(text: &mut String, Kinds { kinds, groups, near_duplicates, contradictions, in_context: prompted }: &Kinds) {
    if !kinds.is_empty() {
        add!(text, "### Why they may be conflicts\n");
        add!(
            text,
            "Assigned by heuristic rules, of which the first match counts; conflicts.parquet has the kind of each conflict.\n"
        );
        add!(text, "| kind | conflicts | in rows | mass, nat | of the loss | of the gradient |\n|---|---:|---:|---:|---:|---:|");
        for sums in kinds {
            let (tokens, rows) = (thousands(sums.tokens), thousands(sums.rows));
            let (loss, grad) = (percent(sums.loss_share), percent(sums.grad_share));
            add!(text, "| {} | {tokens} | {rows} | {:.1} | {loss} | {grad} |", sums.kind, sums.surplus);
        }
        add!(text, "\nConflicts grouped by target and the model's choice, those with the most mass first:\n");
        add!(text, "| kind | data | model | times | mass, nat | of the loss | of the gradient | worst example | evidence |");
        add!(text, "|---|---|---|---:|---:|---:|---:|---|---|");
        for group in groups.iter().take(SHOWN) {
            let (data, model, example) = (cell(&group.token), cell(&group.top), at(Some(&group.example)));
            let (loss, grad) = (percent(group.loss_share), percent(group.grad_share));
            let (times, because) = (thousands(group.count), escaped(&visible(&group.evidence)));
            let (kind, surplus) = (group.kind, group.surplus);
            add!(text, "| {kind} | {data} | {model} | {times} | {surplus:.1} | {loss} | {grad} | {example} | {because} |");
        }
        add!(text, "");
    }
    if let Some(prompted) = prompted {
        in_context(text, prompted);
    }
    let alike = [
        (*near_duplicates, "the same prompt as an earlier row, or a similar one"),
        (*contradictions, "the same prompt as another row but a different answer"),
    ];
    let alike = alike.iter().filter(|(n, _)| *n > 0).map(|(n, how)| format!("{} {how}", counted(*n, "row has", "rows have")));
    let alike = alike.collect::<Vec<_>>().join("; ");
    if !alike.is_empty() {
        add!(text, "{alike} (pairs.parquet).\n");
    }
}

fn in_context(text: &mut String, prompted: &Prompted) {
    add!(text, "### With another row of the same kind shown first\n");
    add!(
        text,
        "The answers of {} with conflicts were scored again, each with another row of its kind as earlier turns ({} left out: no other \
         row of the kind with the same tools, too long together, or not drawn). A conflict vanishes if p and H then no longer make it one under the same \
         thresholds: one example was enough to get the answer. One that stays may be a contradiction in knowledge, or a habit that one example does not \
         break; comparing the kinds tells more than a share alone. Any change of context shifts some tokens: {} of the other tokens of these rows became conflicts.\n",
        count(prompted.rows, "row"),
        counted(prompted.rows_left_out, "row was", "rows were"),
        percent_with_interval(prompted.new_conflicts_share, prompted.new_conflicts_share_ci95)
    );
    add!(text, "| kind | conflicts | vanish | share | mean change of ln p, nat |\n|---|---:|---:|---:|---:|");
    for PromptedKind { kind, tokens, vanished, vanished_share, vanished_share_ci95, change } in &prompted.kinds {
        let share = percent_with_interval(*vanished_share, *vanished_share_ci95);
        add!(text, "| {kind} | {} | {} | {share} | {change:+.2} |", thousands(*tokens), thousands(*vanished));
    }
    add!(text, "");
}

fn rankings(text: &mut String, planted: &RankingQuality) {
    add!(text, "## Planted conflicts\n");
    add!(
        text,
        "{} of these data ({}) {} marked as planted: changed on purpose to something that a competent model should doubt. How \
         well each ranking of the tokens finds the first token of each span (AUROC with its 95 % interval over rows; precision and \
         recall among the top 1 % of the tokens):\n",
        count(planted.spans as u64, "span"),
        count(planted.rows as u64, "row"),
        if planted.spans == 1 { "is" } else { "are" }
    );
    add!(text, "| ranking | AUROC | precision at 1 % | recall at 1 % | AUROC, any token of a span |\n|---|---:|---:|---:|---:|");
    for scores in &planted.rankings {
        let first = &scores.first_token;
        add!(
            text,
            "| {} | {} | {} | {} | {} |",
            scores.ranking.name(),
            number_with_interval(first.auroc, first.auroc_ci95, 4),
            first.precision_at_1_percent.map_or("-".to_owned(), percent),
            first.recall_at_1_percent.map_or("-".to_owned(), percent),
            number_with_interval(scores.any_token.auroc, scores.any_token.auroc_ci95, 4)
        );
    }
    add!(text, "");
}

fn gates(text: &mut String, summary: &Summary, is_bounded: bool) {
    add!(text, "## What each loss would do with these data\n");
    if is_bounded {
        add!(
            text,
            "The weights of EAFT and of gates that use only p are exact; those that use the full entropy, and all gradient norms, are computed from the midpoint of \
             their bounds.\n"
        );
    }
    add!(
        text,
        "Every loss weights each token's cross-entropy. *Effective tokens* is (sum w)² / sum w²; *gradient kept* is what remains of each \
         quadrant's gradient; multiply the learning rate by the *learning-rate factor* for the same sum of gradient norms as plain SFT.\n"
    );
    add!(
        text,
        "| loss | effective tokens | mean weight | gradient kept: conflict | uncertain | confident | hesitant | learning-rate factor |"
    );
    add!(text, "|---|---:|---:|---:|---:|---:|---:|---:|");
    for preview in &summary.gates {
        let GatePreview { gate, effective_tokens, mean_weight, learning_rate_factor, learning_rate_factor_ci95, kept, .. } =
            preview;
        let kept = Quadrant::ALL.map(|quadrant| percent(kept.get(quadrant).grad)).join(" | ");
        let factor = number_with_interval(*learning_rate_factor, *learning_rate_factor_ci95, 2);
        add!(text, "| {gate} | {} | {mean_weight:.3} | {kept} | {factor} |", thousands(effective_tokens.round() as u64));
    }
    add!(
        text,
        "\nOf everything that a gate removes, the shares that fall on conflicts and on tokens the model already knows:\n\n\
         | loss | gradient removed | of which conflicts | uncertain | already known | weight removed | of which conflicts | already known |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|"
    );
    for GatePreview { gate, taken, .. } in summary.gates.iter().filter(|preview| preview.taken.weight > 0.0) {
        let share = &taken.share;
        add!(
            text,
            "| {gate} | {} | {} | {} | {} | {} | {} | {} |",
            percent(taken.grad),
            percent(share.confident_conflict.grad),
            percent(share.uncertain.grad),
            percent(share.confident.grad),
            percent(taken.weight),
            percent(share.confident_conflict.weight),
            percent(share.confident.weight)
        );
    }
    add!(text, "");
}

fn breakdowns(text: &mut String, summary: &Summary) {
    let row = |text: &mut String, title: &str, breakdown: &Breakdown| {
        let conflict = &breakdown.quadrants.confident_conflict;
        add!(
            text,
            "| {title} | {} | {} | {:.2} | {:.2} | {} | {} | {} |",
            thousands(breakdown.rows),
            thousands(breakdown.tokens),
            breakdown.perplexity,
            breakdown.mean_entropy,
            percent_with_interval(conflict.token_share, conflict.token_share_ci95),
            percent_with_interval(conflict.loss_share, conflict.loss_share_ci95),
            percent_with_interval(conflict.grad_share, conflict.grad_share_ci95)
        );
    };
    let columns = "rows | tokens | perplexity | entropy | conflicts | of the loss | of the gradient |\n|---|---:|---:|---:|---:|---:|---:|---:|";
    if summary.sources.len() > 1 {
        add!(text, "## By source\n\n| source | {columns}");
        for source in summary.sources.iter().take(SOURCES_SHOWN) {
            row(text, &escaped(&source.source), &source.breakdown);
        }
        if let Some(more @ 1..) = summary.sources.len().checked_sub(SOURCES_SHOWN) {
            add!(text, "\nAnd {} more sources, listed in summary.json.", thousands(more as u64));
        }
        add!(text, "");
    }
    if summary.turns.len() > 1 {
        add!(text, "## By turn\n\nTurns are counted from 0, system prompts and tool results included.\n\n| turn | {columns}");
        for turn in summary.turns.iter().take(SHOWN) {
            row(text, &turn.turn.to_string(), &turn.breakdown);
        }
        add!(text, "");
    }
}

fn self_check(text: &mut String, OnPolicy { rows, respelt, check, why_not }: &OnPolicy) {
    add!(text, "## The model's own answers\n");
    add!(
        text,
        "{} drawn from a model; the text of {} of them tokenises differently from the drawn tokens, and the drawn ones are scored.\n",
        counted(*rows, "row is an answer", "rows are answers"),
        thousands(*respelt)
    );
    if let Some(check) = check {
        add!(text, "{}\n", check.sentence());
    }
    if let Some(why_not) = why_not {
        add!(text, "There is no self-check: {why_not}.\n");
    }
}

fn calibration(text: &mut String, report: &Report) {
    add!(text, "## Can the model's own numbers be trusted?\n\n![distribution of the tail probability](maps/tail.png)\n");
    add!(
        text,
        "`tail` is each token's p-value if the model had written the text: uniform on its own text, so an excess of small values \
         shows where the data disagree with the model.\n"
    );
    if let Some(at_k) = report.topk_fidelity.iter().find(|at_k| at_k.k == TOP_K) {
        add!(text, "![top-K entropy against the full entropy](maps/fidelity.png)\n");
        let pearson = at_k.pearson.map_or("-".to_owned(), |pearson| format!("{pearson:.4}"));
        add!(
            text,
            "EAFT uses the entropy of the {TOP_K} most probable tokens. On {} of these data it correlates with the entropy \
             of the whole vocabulary with r = {pearson}, and differs from it by {:.3} nat on average.\n",
            n_tokens(at_k.n),
            at_k.mean_abs_error
        );
    }
}

/// The sentence around a token.
fn at(spot: Option<&Spot>) -> String {
    spot.and_then(|spot| spot.context.as_ref()).map_or_else(String::new, sentence)
}

/// A sentence for a table cell, with its token in quotes.
fn sentence(InContext { before, token, after, part }: &InContext) -> String {
    let [before, after] = [before, after].map(|text| escaped(&isolated(&visible(text))));
    match token.is_empty() {
        true => between(&before, OF_TEMPLATE, &after),
        false => format!("{before}{}{after}{}", cell(token), note(*part)),
    }
}

/// A token for a table cell.
fn cell(token: &str) -> String {
    quoted(token).replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_text_stays_text() {
        assert_eq!(escaped("a|b_c\nd"), "a\\|b\\_c d");
        assert_eq!(cell("a|b"), "`a\\|b`");
        let context =
            InContext { before: "a *b*".to_owned(), token: " c".to_owned(), after: "\u{202E}\n|".to_owned(), part: None };
        assert_eq!(sentence(&context), "a \\*b\\*`␣c`⟨U+202E⟩⏎\\|");
        let in_call = InContext { part: Some(crate::tokens::Part::ToolCall), ..context };
        assert_eq!(sentence(&in_call), "a \\*b\\*`␣c`⟨U+202E⟩⏎\\| (tool call)");
        let end_of_turn = InContext { before: "Paris.".to_owned(), ..InContext::default() };
        assert_eq!(sentence(&end_of_turn), "Paris. (of the template)");
    }
}
