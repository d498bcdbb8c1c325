//! Checks what other programs make of a row against what is trained on here: a template that they read differently is refused by name.
//!
//! LLaMA-Factory, unless given a template of its own, cuts slots out of four renderings of the tokenizer's template (`parse_template` in
//! src/llamafactory/data/template.py) and assembles every row from them. A template that renders a turn differently when others follow, or that puts
//! something before the first turn, gives other tokens there. axolotl finds a turn by the difference between two renderings of the messages up to it
//! (`find_turn` in src/axolotl/prompt_strategies/chat_template.py), and supervises other tokens where these are no prefix of the whole.

use super::Program;
use crate::dataset::{Example, Role, Turn};
use crate::error::{Error, Result};
use crate::tokens::{Renderer, Supervise};

/// How another program reads rows.
pub(crate) struct Reader {
    pub(crate) renderer: Renderer,
    supervise: Supervise,
    /// LLaMA-Factory's version of the template; `None` for axolotl.
    slots: Option<Slots>,
}

impl Reader {
    pub(crate) fn of(program: Program, renderer: Renderer, supervise: Supervise) -> Result<Reader> {
        let slots = (program == Program::LlamaFactory).then(|| Slots::of(&renderer)).transpose()?;
        Ok(Reader { renderer, supervise, slots })
    }

    /// Returns an error if the program would make other tokens of the row, or supervise others.
    pub(crate) fn check(&self, example: &Example) -> Result<()> {
        match &self.slots {
            Some(slots) => slots.check(&self.renderer, example, self.supervise),
            None => check_axolotl(&self.renderer, example, self.supervise),
        }
    }
}

/// The slots that LLaMA-Factory extracts from a chat template.
struct Slots {
    prefix: String,
    system: String,
    default_system: String,
    user: String,
    assistant: String,
    /// Whether every answer without reasoning gets an empty reasoning block.
    thinks: bool,
}

const CONTENT: &str = "{{content}}";
const NO_THOUGHT: &str = "<think>\n\n</think>\n\n";

impl Slots {
    /// Follows `parse_template` line by line; it counts characters.
    fn of(renderer: &Renderer) -> Result<Slots> {
        if renderer.template_sha256().is_none() {
            return Err(Error::new(
                "the model has no chat template, without which LLaMA-Factory does not learn where answers end",
            )
            .cure("Use --emit axolotl, or train here."));
        }
        let tokenizer = renderer.tokenizer();
        let prefix: String = tokenizer.leading().iter().map(|&id| tokenizer.text(id)).collect();
        let n_prefix = prefix.chars().count();
        let turn = |role: Role, text: &str| Turn::plain(role, text);
        let render = |turns: Vec<Turn>, asks: bool| {
            let text = renderer.text(turns, asks).map_err(|error| unlike("cannot read this chat template").caused_by(error))?;
            Ok::<_, Error>(behind(&text, n_prefix).to_owned())
        };
        let system = render(vec![turn(Role::System, CONTENT)], false)?;
        let empty_system = render(vec![turn(Role::System, ""), turn(Role::User, CONTENT)], true)?;
        let mut user = render(vec![turn(Role::User, CONTENT)], true)?;
        let answered = render(vec![turn(Role::User, CONTENT), turn(Role::Assistant, CONTENT)], false)?;
        let answer = behind(&answered, user.chars().count());
        let thinks = answer.contains("<think>");
        let assistant = answer.replace("<think>", "").replace("</think>", "").trim_start_matches('\n').to_owned();
        let mut default_system = String::new();
        if user.chars().count() > empty_system.chars().count() {
            default_system = difference(&empty_system, &user);
            let alone = system.replacen(CONTENT, &default_system, 1);
            user = behind(&user, alone.chars().count()).to_owned();
        }
        if let Some(slot) = [&system, &user, &assistant].into_iter().find(|slot| !slot.contains(CONTENT)) {
            return Err(unlike(&format!("finds no place for the content in a part of this chat template, {slot:?}")));
        }
        Ok(Slots { prefix, system, default_system, user, assistant, thinks })
    }

    /// Returns an error if LLaMA-Factory would make other tokens of the row, or supervise others.
    fn check(&self, renderer: &Renderer, example: &Example, supervise: Supervise) -> Result<()> {
        let sequence = renderer.render_whole(0, example)?.sequence;
        let pieces = self.pieces(renderer, &example.turns, supervise)?;
        let ids: Vec<u32> = pieces.iter().flat_map(|(ids, _)| ids).copied().collect();
        if ids != sequence.ids {
            let at = ids.iter().zip(&sequence.ids).take_while(|(a, b)| a == b).count();
            let shown = |ids: &[u32]| {
                let text: String = ids.iter().skip(at).take(8).map(|&id| renderer.tokenizer().text(id)).collect();
                format!("{text:?}")
            };
            return Err(unlike(&format!(
                "tokenises the row differently: at token {at} {} where the chat template has {}",
                shown(&ids),
                shown(&sequence.ids)
            )));
        }
        let last = pieces.iter().rposition(|(_, is_answer)| *is_answer);
        let mut at = 0;
        for (idx, (ids, is_answer)) in pieces.iter().enumerate() {
            let ours = &sequence.supervised[at..at + ids.len()];
            let n_learnt = ours.iter().take_while(|learnt| **learnt).count();
            let is_learnt = *is_answer && (supervise == Supervise::Assistant || Some(idx) == last);
            // LLaMA-Factory also supervises a line break after the end of a turn.
            let behind: String = ids[n_learnt..].iter().map(|&id| renderer.tokenizer().text(id)).collect();
            let is_same = if is_learnt { n_learnt > 0 && behind.trim().is_empty() } else { n_learnt == 0 };
            if !is_same || ours[n_learnt..].contains(&true) {
                return Err(unlike("masks the row differently"));
            }
            at += ids.len();
        }
        Ok(())
    }

    /// The pieces that LLaMA-Factory encodes one by one, each with whether it is an answer: `_encode` and `encode_multiturn`.
    fn pieces(&self, renderer: &Renderer, turns: &[Turn], supervise: Supervise) -> Result<Vec<(Vec<u32>, bool)>> {
        let encode =
            |text: &str| Ok::<_, Error>(renderer.tokenizer().encode(text)?.iter().map(|token| token.id).collect::<Vec<_>>());
        let (system, turns) = match turns.split_first() {
            Some((first, rest)) if first.role == Role::System => (first.content.as_str(), rest),
            _ => ("", turns),
        };
        let system = if system.is_empty() { self.default_system.as_str() } else { system };
        let mut pieces = vec![(encode(&self.prefix)?, false)];
        if !system.is_empty() {
            pieces.push((encode(&self.system.replacen(CONTENT, system, 1))?, false));
        }
        for (idx, turn) in turns.iter().enumerate() {
            if turn.role != Role::Assistant {
                pieces.push((encode(&self.user.replacen(CONTENT, &turn.content, 1))?, false));
                continue;
            }
            let is_given = supervise == Supervise::Last && idx + 1 < turns.len();
            let mut ids = Vec::new();
            if self.thinks && !is_given && !turn.content.contains("<think>") && !turn.content.contains("</think>") {
                ids = encode(NO_THOUGHT)?;
            }
            ids.extend(encode(&self.assistant.replacen(CONTENT, &turn.content, 1))?);
            pieces.push((ids, true));
        }
        Ok(pieces)
    }
}

fn unlike(what: &str) -> Error {
    Error::new(format!("LLaMA-Factory {what}")).cure("Use --emit axolotl, or train here.")
}

/// The text after its first `n` characters.
fn behind(text: &str, n: usize) -> &str {
    text.char_indices().nth(n).map_or("", |(at, _)| &text[at..])
}

/// The characters that a longer text has and a shorter one lacks, as in `find_diff`.
fn difference(short: &str, long: &str) -> String {
    let mut rest = short.chars().peekable();
    let mut found = String::new();
    for c in long.chars() {
        match rest.peek() {
            None => break,
            Some(next) if *next == c => _ = rest.next(),
            Some(_) => found.push(c),
        }
    }
    found
}

/// Returns an error if axolotl, which takes a turn to be the difference between two renderings of the messages up to it, would supervise other
/// tokens; of a turn without a text it finds nothing, not even the end.
fn check_axolotl(renderer: &Renderer, example: &Example, supervise: Supervise) -> Result<()> {
    let last = example.turns.iter().rposition(|turn| turn.role == Role::Assistant);
    let is_learnt = |turn: usize| example.turns[turn].is_learnt() && (supervise != Supervise::Last || Some(turn) == last);
    let is_empty = |turn: &Turn| turn.content.trim().is_empty() && turn.reasoning.is_none() && turn.calls().next().is_none();
    let is_empty_answer = |turn: &Turn| turn.role == Role::Assistant && is_empty(turn);
    if let Some(turn) = (0..example.turns.len()).find(|&turn| is_learnt(turn) && is_empty_answer(&example.turns[turn])) {
        return Err(Error::new(format!(
            "message {} is empty, and axolotl learns nothing of it, whereas here its end is learnt",
            turn + 1
        ))
        .cure("Give the message \"weight\": 0, or remove the row."));
    }
    match renderer.rewritten_turns(example)?.into_iter().find(|&turn| is_learnt(turn)) {
        None => Ok(()),
        Some(turn) => Err(Error::new(format!(
            "the chat template renders message {} differently when others follow it, so axolotl would learn different tokens of it",
            turn + 1
        ))
        .cure("Use --supervise last, train here, or pass a template that does not.")),
    }
}
