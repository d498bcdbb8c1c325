//! Converts a conversation to token ids, the loss mask and the spans.
//!
//! The text is tokenised in separate pieces at the beginning and the end of every answer: at inference the prompt is tokenised alone, so no token
//! may straddle the boundary. Special tokens that occur in the data as text are parsed as such, as in Transformers, and counted.
//!
//! Without a chat template (a base model) the turns are concatenated without separators, after the beginning token if the tokenizer adds one, and
//! with the end token, if there is one, after each answer. A plain text ([`Role::Text`]) is never put through the template: it consists of the
//! beginning token and the text, all of it supervised.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use minijinja::Value;

use super::audit::{Drawn, RowAudit};
use super::marks::is_mark;
use super::template::{ChatTemplate, Surroundings};
use super::tokenizer::{Token, Tokenizer};
use super::turns::{Answer, Conversation, Habits, Layout, Placed, lay_out};
use super::{Sequence, Span, lost, python};
use crate::dataset::{Example, Role, Turn, embedded_json};
use crate::error::{Error, Result};
use crate::files::sha256;
use crate::spelling::named;

/// The tokens that are targets of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Supervise {
    /// Every assistant turn: its content and its end-of-turn token.
    #[default]
    Assistant,
    /// The last assistant turn only.
    Last,
    /// The whole text, template included.
    All,
}

named! { pub Supervise, "the tokens that count": Assistant = "assistant", Last = "last", All = "all" }

/// The default maximum length of a sequence, unless the model's limit is lower.
pub const DEFAULT_MAX_LEN: usize = 2048;

/// How conversations are tokenised, and which tokens are supervised.
#[derive(Debug, Clone)]
pub struct RenderOptions {
    /// A system prompt for conversations that have no system turn.
    pub system: Option<String>,
    /// The maximum length; longer sequences are truncated on the right.
    pub max_len: usize,
    /// The supervised answers.
    pub supervise: Supervise,
    /// A chat template to use instead of the model's own.
    pub chat_template: Option<PathBuf>,
    /// A JSON object of variables for the chat template; a row's own take precedence.
    pub template_switches: Option<serde_json::Value>,
    /// Whether to append the end token to plain texts that do not end with it, as TRL does.
    pub append_eos: bool,
}

impl Default for RenderOptions {
    fn default() -> Self {
        RenderOptions {
            system: None,
            max_len: DEFAULT_MAX_LEN,
            supervise: Supervise::Assistant,
            chat_template: None,
            template_switches: None,
            append_eos: false,
        }
    }
}

impl RenderOptions {
    /// Parses the value of `--chat-template-kwargs`.
    pub fn parse_switches(json: Option<&str>) -> Result<Option<serde_json::Value>> {
        let parse = |json: &str| match serde_json::from_str(json) {
            Ok(switches @ serde_json::Value::Object(_)) => Ok(switches),
            _ => Err(Error::usage(format!("--chat-template-kwargs: expected a JSON object, found `{json}`"))
                .cure("For example --chat-template-kwargs '{\"enable_thinking\": false}'.")),
        };
        json.map(parse).transpose()
    }
}

/// Renders and tokenises examples; it can be shared between threads.
pub struct Renderer {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) template: Option<(ChatTemplate, Habits)>,
    /// The template named `tool_use`, for conversations with tools; absent if the model has a single template.
    tool_use: Option<(ChatTemplate, Habits)>,
    template_sha256: Option<String>,
    writes_date: bool,
    options: RenderOptions,
}

/// A rendered sequence and its audit.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    /// The tokens, the loss mask, and the position of each token in the contents.
    pub sequence: Sequence,
    /// The weight of each target in the loss, in the order of the targets.
    pub target_weights: Vec<f32>,
    /// Suspicious properties of the row.
    pub audit: RowAudit,
}

impl Renderer {
    /// Creates a renderer, and tests the template on a small conversation, so that a broken template fails here and not on every row.
    pub fn new(tokenizer: Arc<Tokenizer>, template: Option<ChatTemplate>, options: RenderOptions) -> Result<Self> {
        if options.max_len == 0 {
            return Err(Error::usage("the maximum length of a sequence must be at least 1 token"));
        }
        if options.append_eos && tokenizer.eos().is_none() {
            return Err(Error::usage("--append-eos: the tokenizer names no end token to append")
                .cure("Name it in tokenizer_config.json (eos_token), or leave --append-eos out."));
        }
        let mut template = match &options.chat_template {
            Some(path) => Some(ChatTemplate::from_file(path, template.as_ref(), &tokenizer)?),
            None => template,
        };
        let learnt = |template: ChatTemplate| {
            let special_tokens = tokenizer.special_tokens().filter(|token| !token.is_empty()).collect();
            let eos = tokenizer.eos().map(|eos| tokenizer.text(eos)).filter(|eos| !eos.is_empty());
            let habits = Habits::learn(&template, special_tokens, eos.as_deref())?;
            Ok::<_, Error>((template, habits))
        };
        let tool_use = template.as_mut().and_then(ChatTemplate::take_tool_use).map(learnt).transpose()?;
        let template = template.map(learnt).transpose()?;
        let switches = options.template_switches.as_ref().map(python::from_json);
        let dated = template.iter().chain(&tool_use).filter_map(|(template, _)| template.dated(switches.as_ref()));
        let dated: Vec<String> = dated.collect();
        let template_sha256 = template.as_ref().map(|(template, _)| match dated.is_empty() {
            true => template.sha256().to_owned(),
            false => sha256(format!("{}\n{}", template.sha256(), dated.join("\n"))),
        });
        Ok(Self { tokenizer, template, tool_use, template_sha256, writes_date: !dated.is_empty(), options })
    }

    /// Returns the SHA-256, in hexadecimal, of the source of the chat template in use, combined with the date if the template renders it into
    /// conversations. Returns `None` without a template.
    pub fn template_sha256(&self) -> Option<&str> {
        self.template_sha256.as_deref()
    }

    /// The source of the chat template in use; where the model has another for conversations with tools, not that one.
    pub fn template_source(&self) -> Option<&str> {
        self.template.as_ref().map(|(template, _)| template.source())
    }

    /// Whether the chat template writes today's date into conversations.
    pub fn writes_date(&self) -> bool {
        self.writes_date
    }

    /// Returns a renderer without variables for the template beside those of the rows.
    pub(crate) fn without_switches(mut self) -> Self {
        self.options.template_switches = None;
        self
    }

    /// The tokenizer of the examples.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Renders one example, cut at the maximum length. `row` is the index of the record over the whole input.
    pub fn render(&self, row: u32, example: &Example) -> Result<Rendered> {
        let mut rendered = self.render_whole(row, example)?;
        truncate(&mut rendered, self.options.max_len);
        Ok(rendered)
    }

    /// Like [`Renderer::render`], of any length.
    pub fn render_whole(&self, row: u32, example: &Example) -> Result<Rendered> {
        check(example)?;
        let layout = self.lay_out(example)?;
        let supervised = self.supervised_answers(&layout, &example.turns);
        for answer in layout.answers.iter().filter(|answer| !example.turns[answer.turn].parts.is_empty()) {
            if !layout.contents.iter().any(|placed| placed.turn == answer.turn) {
                return Err(Error::new(format!(
                    "only part of message {} is supervised, but the chat template does not render its content unchanged",
                    answer.turn + 1
                ))
                .cure("Include or exclude the whole turn, or pass another template."));
            }
        }
        let tokens = self.tokenize(&layout)?;
        let mut weights: Vec<f32> = tokens.iter().map(|token| self.weight(token, &layout, &supervised, &example.turns)).collect();
        // The first token has no prediction.
        weights.iter_mut().take(1).for_each(|first| *first = 0.0);
        let mut rendered = Rendered {
            sequence: Sequence {
                row,
                ids: tokens.iter().map(|token| token.id).collect(),
                supervised: weights.iter().map(|&weight| weight > 0.0).collect(),
                spans: spans(&tokens, &layout),
            },
            target_weights: weights.into_iter().filter(|&weight| weight > 0.0).collect(),
            audit: RowAudit::default(),
        };
        let drawn = example.rollout.as_ref().map(|rollout| self.put_drawn(&mut rendered, rollout, example, &layout, &tokens));
        rendered.audit = self.audit(example, &rendered.sequence, &tokens, &layout, &supervised);
        rendered.audit.drawn = drawn;
        if let Some(rollout) = example.rollout.as_ref().filter(|_| matches!(drawn, Some(Drawn::Same | Drawn::Respelt))) {
            rendered.audit.missing_end_of_turn = supervised.last() == Some(&true) && rollout.ended != "end_token";
        }
        Ok(rendered)
    }

    pub(super) fn lay_out(&self, example: &Example) -> Result<Layout> {
        let is_text = example.turns.iter().any(|turn| turn.role == Role::Text);
        match self.template_of(example) {
            _ if is_text => self.lay_out_text(&example.turns),
            Some(template) => self.attempts(template, example, lay_out),
            None => self.lay_out_plain(example),
        }
    }

    /// Applies `render` to the row as a conversation, in the first form that the template accepts.
    pub(super) fn attempts<T>(
        &self,
        (template, habits): &(ChatTemplate, Habits),
        example: &Example,
        render: impl Fn(&ChatTemplate, &Habits, &Conversation) -> Result<T>,
    ) -> Result<T> {
        let tools = example.tools.as_ref().map(python::from_json);
        let switches = self.switches(example)?;
        let around = Surroundings { tools: tools.as_ref(), switches: switches.as_ref() };
        let attempt = |turns: &[Turn], contents| {
            let messages = Messages { template, habits, contents };
            render(template, habits, &self.conversation(turns, around, &messages))
        };
        let is_no_text = |turn: &Turn| turn.written.without_content || turn.written.value.is_some();
        let has_no_text = example.turns.iter().any(is_no_text);
        let first = attempt(&example.turns, Contents::AsWritten);
        // A template that requires a content gets an empty one, and JSON text instead of an object.
        let second = || attempt(&example.turns, Contents::Text);
        let first = first.or_else(|error| if has_no_text { second().map_err(|_| error) } else { Err(error) });
        // A template that iterates over the arguments of a call cannot do so with a text, so it gets the object that the text holds.
        match (first, with_parsed_arguments(&example.turns)) {
            (Err(error), Some(turns)) => {
                let parsed =
                    [Contents::AsWritten, Contents::Text].into_iter().find_map(|contents| attempt(&turns, contents).ok());
                parsed.ok_or(error)
            }
            (first, _) => first,
        }
    }

    /// Returns the variables of the row, and those of the options that the row does not set.
    fn switches(&self, example: &Example) -> Result<Option<Value>> {
        let all = [&self.options.template_switches, &example.template_switches]
            .into_iter()
            .flatten()
            .filter_map(|json| json.as_object());
        let mut switches = serde_json::Map::new();
        for (key, value) in all.flatten() {
            if ["messages", "tools", "documents", "add_generation_prompt"].contains(&key.as_str()) {
                return Err(Error::new(format!("`chat_template_kwargs`: `{key}` is set by the program itself"))
                    .cure("Remove it; messages and tools have their own columns."));
            }
            switches.insert(key.clone(), value.clone());
        }
        Ok((!switches.is_empty()).then(|| python::from_json(&serde_json::Value::Object(switches))))
    }

    fn conversation<'a>(&self, turns: &'a [Turn], around: Surroundings<'a>, way: &Messages) -> Conversation<'a> {
        let mut messages = Vec::with_capacity(turns.len() + 1);
        let mut turn_of = Vec::with_capacity(turns.len() + 1);
        if let Some(system) = self.missing_system(turns) {
            messages.push(way.message(&Turn::plain(Role::System, system)));
            turn_of.push(None);
        }
        messages.extend(turns.iter().map(|turn| way.message(turn)));
        turn_of.extend((0..turns.len()).map(Some));
        Conversation { messages, turn_of, turns, around }
    }

    fn missing_system(&self, turns: &[Turn]) -> Option<&str> {
        self.options.system.as_deref().filter(|_| turns.iter().all(|turn| turn.role != Role::System))
    }

    /// Lays out a row of plain text as a single answer without an end.
    fn lay_out_text(&self, turns: &[Turn]) -> Result<Layout> {
        let [turn] = turns else {
            return Err(Error::new(format!("expected one turn of plain text, found {} turns", turns.len())));
        };
        let (mut text, len) = (turn.content.clone(), turn.content.len());
        let end = self.tokenizer.eos().map(|eos| self.tokenizer.text(eos)).filter(|end| !end.is_empty());
        let has_end = end.as_ref().is_some_and(|end| text.ends_with(end.as_str()));
        let appended = end.filter(|_| (self.options.append_eos || self.tokenizer.ends_texts()) && !has_end);
        text.push_str(appended.as_deref().unwrap_or_default());
        let answers = vec![Answer { turn: 0, range: 0..text.len(), ends_turn: has_end || appended.is_some() }];
        let contents = vec![Placed { turn: 0, at: 0, begin: 0, len }];
        Ok(Layout { leading: self.tokenizer.leading().to_vec(), text, answers, contents, unlike_prompt: false })
    }

    fn lay_out_plain(&self, example: &Example) -> Result<Layout> {
        let cure = "Pass one with --chat-template FILE, or use the chat version of the model (often called Instruct or it).";
        // A prompt and its completion may be concatenated, but only a template defines how to write the speakers of a conversation.
        let is_pair = matches!(
            example.turns.iter().map(|turn| turn.role).collect::<Vec<_>>()[..],
            [Role::Assistant] | [Role::User, Role::Assistant]
        );
        if !is_pair {
            let roles: Vec<String> = example.turns.iter().map(|turn| turn.role.name().to_owned()).collect();
            let found =
                format!("the row is a conversation ({}), but the model has no chat template to render it", roles.join(", "));
            return Err(Error::new(found).cure(cure));
        }
        if example.tools.is_some() || example.turns.iter().any(|turn| turn.tool_calls.is_some() || turn.reasoning.is_some()) {
            return Err(
                Error::new("tools and reasoning cannot be written as plain text, and the model has no chat template").cure(cure)
            );
        }
        let mut layout = Layout { leading: self.tokenizer.leading().to_vec(), ..Layout::default() };
        layout.text.push_str(self.missing_system(&example.turns).unwrap_or_default());
        let end_of_turn = self.tokenizer.eos().map(|eos| self.tokenizer.text(eos));
        for (turn_idx, turn) in example.turns.iter().enumerate() {
            let at = layout.text.len();
            layout.text.push_str(&turn.content);
            layout.contents.push(Placed { turn: turn_idx, at, begin: 0, len: turn.content.len() });
            if turn.role == Role::Assistant {
                layout.text.push_str(end_of_turn.as_deref().unwrap_or_default());
                layout.answers.push(Answer { turn: turn_idx, range: at..layout.text.len(), ends_turn: end_of_turn.is_some() });
            }
        }
        Ok(layout)
    }

    /// Returns whether each answer is supervised.
    fn supervised_answers(&self, layout: &Layout, turns: &[Turn]) -> Vec<bool> {
        let last = layout.answers.last().map(|answer| answer.turn);
        let chosen = |turn: usize| self.options.supervise != Supervise::Last || Some(turn) == last;
        layout.answers.iter().map(|answer| turns[answer.turn].is_learnt() && chosen(answer.turn)).collect()
    }

    /// Returns the weight of a token in the loss, or 0 if it is no target.
    fn weight(&self, token: &Token, layout: &Layout, supervised: &[bool], turns: &[Turn]) -> f32 {
        let answer = layout.answers.iter().position(|answer| holds(&answer.range, token));
        match (self.options.supervise, answer) {
            (_, Some(answer)) if supervised[answer] => {
                let turn = layout.answers[answer].turn;
                part_weight(token, layout, turn, &turns[turn])
            }
            (Supervise::All, None) => {
                let content = layout.contents.iter().find(|placed| holds(&(placed.at..placed.at + placed.len), token));
                content.map_or(1.0, |placed| part_weight(token, layout, placed.turn, &turns[placed.turn]))
            }
            _ => 0.0,
        }
    }

    /// Tokenises the text so that each answer begins and ends on a token boundary.
    pub(super) fn tokenize(&self, layout: &Layout) -> Result<Vec<Token>> {
        let text = &layout.text;
        let mut tokens: Vec<Token> = layout.leading.iter().map(|&id| Token { id, begin: 0, end: 0 }).collect();
        let mut cuts: Vec<usize> = layout.answers.iter().flat_map(|answer| [answer.range.start, answer.range.end]).collect();
        cuts.retain(|&cut| 0 < cut && cut < text.len());
        cuts.dedup();
        if self.tokenizer.has_prefix_space() || self.tokenizer.swallows_space() {
            // These tokenizers encode a separate piece differently than within its text: cut only if the whole text cannot be used.
            let whole = self.tokenizer.encode(text)?;
            let mut fits = true;
            for &cut in &cuts {
                fits = fits && self.fits(text, &whole, cut)?;
            }
            if fits {
                tokens.extend(whole);
                return Ok(tokens);
            }
        }
        let mut begin = 0;
        for end in cuts.into_iter().chain([text.len()]) {
            let piece = match tokens.last().filter(|_| begin > 0) {
                Some(before) => {
                    let piece = self.tokenizer.left_behind(before.id, &text[begin..end]);
                    begin = end - piece.len();
                    self.tokenizer.encode_after(before.id, piece)?
                }
                None => self.tokenizer.encode(&text[begin..end])?,
            };
            tokens.extend(piece.iter().map(|token| Token { id: token.id, begin: token.begin + begin, end: token.end + begin }));
            begin = end;
        }
        Ok(tokens)
    }

    /// Whether the tokens of the whole text before `cut` equal those of this part on its own. Only the text after the last control token matters,
    /// since the text before one does not affect the tokens after it.
    fn fits(&self, text: &str, whole: &[Token], cut: usize) -> Result<bool> {
        let whole = &whole[..n_before(whole, cut)];
        let (behind, alone) = match whole.iter().rposition(|token| self.tokenizer.is_special(token.id)) {
            Some(at) => {
                let rest = self.tokenizer.left_behind(whole[at].id, &text[whole[at].end..cut]);
                (&whole[at + 1..], self.tokenizer.encode_after(whole[at].id, rest)?)
            }
            None => (whole, self.tokenizer.encode(&text[..cut])?),
        };
        Ok(alone.iter().map(|token| token.id).eq(behind.iter().map(|token| token.id)))
    }

    /// Returns how many of the layout's tokens precede byte `at`, including the beginning token.
    pub(super) fn n_before(layout: &Layout, tokens: &[Token], at: usize) -> usize {
        let n_leading = layout.leading.len();
        n_leading + tokens.get(n_leading..).map_or(0, |tokens| n_before(tokens, at))
    }

    /// Returns the template for a row; Transformers chooses among named ones in the same way.
    pub(super) fn template_of(&self, example: &Example) -> Option<&(ChatTemplate, Habits)> {
        self.tool_use.as_ref().filter(|_| example.tools.is_some()).or(self.template.as_ref())
    }

    /// Returns the keys of the row that look like switches and were not used, including variables that the template does not know.
    fn unused_switches(&self, example: &Example) -> Vec<String> {
        let is_text = example.turns.iter().any(|turn| turn.role == Role::Text);
        let reads = |name: &str| self.template_of(example).is_some_and(|(template, _)| template.reads(name));
        let unknown = |switches: &Option<serde_json::Value>, written: &str| -> Vec<String> {
            let names = switches.iter().filter_map(|switches| switches.as_object()).flatten().map(|(name, _)| name);
            names.filter(|name| !reads(name)).map(|name| format!("{written}.{name}")).collect()
        };
        let mut unused = example.unused.clone();
        unused.extend(unknown(&example.template_switches, "chat_template_kwargs"));
        if !is_text {
            unused.extend(unknown(&self.options.template_switches, "--chat-template-kwargs"));
        }
        unused
    }

    /// Returns the row's own names of roles that the template does not know, and that are replaced by standard ones.
    fn renamed_roles(&self, example: &Example) -> Vec<String> {
        let names = example.turns.iter().filter_map(|turn| turn.written.role.as_ref());
        let Some((template, habits)) = self.template_of(example) else { return Vec::new() };
        names.filter(|name| !habits.knows_role(template, name)).cloned().collect()
    }

    /// Returns a template's text of the row, with the generation prompt if `asks` is set.
    pub(super) fn text_by(&self, template: &(ChatTemplate, Habits), example: &Example, asks: bool) -> Result<String> {
        self.attempts(template, example, |template, _, conversation| {
            template.render(&conversation.messages, conversation.around, asks)
        })
    }

    /// Returns the turns as the chat template gets them: under a standard name of the role where it does not know the row's own, as text where it takes
    /// no parts or stops at a content that is none, with arguments as objects where it needs them.
    pub(crate) fn turns_as_rendered(&self, example: &Example) -> Result<Vec<Turn>> {
        let Some(template) = self.template_of(example) else { return Ok(example.turns.clone()) };
        self.attempts(template, example, |template, habits, conversation| {
            template.render(&conversation.messages, conversation.around, false)?;
            let messages = &conversation.messages[conversation.messages.len() - conversation.turns.len()..];
            let rendered = conversation.turns.iter().zip(messages).map(|(turn, message)| {
                let mut turn = turn.clone();
                turn.written.role.take_if(|role| !habits.knows_role(template, role));
                if habits.joins_parts(&turn) {
                    turn.written.parts.clear();
                }
                if message.get_attr("content").is_ok_and(|content| content.as_str().is_some()) {
                    (turn.written.without_content, turn.written.value) = (false, None);
                }
                turn
            });
            Ok(rendered.collect())
        })
    }

    fn audit(&self, example: &Example, sequence: &Sequence, tokens: &[Token], layout: &Layout, supervised: &[bool]) -> RowAudit {
        let is_text = example.turns.iter().any(|turn| turn.role == Role::Text);
        let chosen = || layout.answers.iter().zip(supervised).filter(|(_, supervised)| **supervised).map(|(answer, _)| answer);
        let mut answers_by_turn: Vec<&Answer> = chosen().collect();
        // If a turn has several blocks, the last one must end it.
        answers_by_turn.reverse();
        answers_by_turn.dedup_by_key(|answer| answer.turn);
        let whole_text = is_text || self.options.supervise == Supervise::All;
        let in_content =
            |token: &Token| token.begin < token.end && layout.contents.iter().any(|p| holds(&(p.at..p.at + p.len), token));
        RowAudit {
            empty_mask: !sequence.has_targets(),
            full_mask: !whole_text
                && sequence.supervised.len() > 1
                && sequence.supervised[1..].iter().all(|supervised| *supervised),
            missing_end_of_text: is_text && answers_by_turn.iter().any(|answer| !answer.ends_turn),
            missing_end_of_turn: !is_text && answers_by_turn.iter().any(|answer| !answer.ends_turn),
            empty_think_supervised: !is_text && chosen().any(|answer| has_empty_think(&layout.text, &answer.range)),
            special_in_content: tokens.iter().any(|token| self.tokenizer.is_special(token.id) && in_content(token)),
            unlike_prompt: layout.unlike_prompt,
            without_template: !is_text && self.template_of(example).is_none(),
            truncated: None,
            answer_cut: false,
            drawn: None,
            unused_switches: self.unused_switches(example),
            unread_columns: example.unread.clone(),
            unread_map: example.unread_map.clone(),
            renamed_roles: self.renamed_roles(example),
            joined_parts: self
                .template_of(example)
                .is_some_and(|(_, habits)| example.turns.iter().any(|turn| habits.joins_parts(turn))),
            empty_question: example.turns.iter().any(|turn| turn.role == Role::User && turn.content.trim().is_empty()),
            empty_answer: chosen().any(|answer| says_nothing(&example.turns[answer.turn])),
            ..match is_text {
                true => RowAudit::default(),
                // Without its tools, a row would have another template.
                false => lost::lost(example, layout, |changed| self.text_by(self.template_of(example)?, changed, false).ok()),
            }
        }
    }
}

/// Whether an answer has no text, no reasoning and no tool call.
fn says_nothing(turn: &Turn) -> bool {
    let is_blank = |text: &str| text.trim().is_empty();
    turn.role == Role::Assistant
        && is_blank(&turn.content)
        && turn.tool_calls.is_none()
        && turn.reasoning.as_deref().is_none_or(is_blank)
}

/// Returns the weight of a token of this turn. A token across the edge of a part belongs to the part that contains its first character other than
/// white space, since a token includes the space before its word.
fn part_weight(token: &Token, layout: &Layout, turn_idx: usize, turn: &Turn) -> f32 {
    if turn.parts.is_empty() {
        return turn.weight;
    }
    let text = layout.text.as_bytes().get(token.begin..token.end).unwrap_or_default();
    let at = token.begin + n_white(text);
    let placed =
        layout.contents.iter().find(|placed| placed.turn == turn_idx && (placed.at..placed.at + placed.len).contains(&at));
    let Some(at) = placed.map(|placed| placed.begin + at - placed.at).filter(|_| !text.is_empty()) else { return turn.weight };
    turn.weight_at(at)
}

/// Returns the length of the white space before the first other character; 0 if there is nothing else.
pub(super) fn n_white(text: &[u8]) -> usize {
    text.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(0)
}

/// Returns the turns with the arguments of their calls parsed into objects, if any are texts that hold one.
pub(crate) fn with_parsed_arguments(turns: &[Turn]) -> Option<Vec<Turn>> {
    let mut turns = turns.to_vec();
    let mut is_changed = false;
    for call in turns.iter_mut().filter_map(|turn| turn.tool_calls.as_mut()?.as_array_mut()).flatten() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        let parsed = arguments.as_str().and_then(embedded_json);
        if let Some(parsed) = parsed.filter(serde_json::Value::is_object) {
            *arguments = parsed;
            is_changed = true;
        }
    }
    is_changed.then_some(turns)
}

/// Returns how many tokens precede byte `at` of a text; a token without bytes counts with the one after it.
fn n_before(tokens: &[Token], at: usize) -> usize {
    tokens.partition_point(|token| token.begin < at && token.end <= at)
}

/// Whether the token belongs to this range. A token without bytes belongs to what follows it.
fn holds(range: &Range<usize>, token: &Token) -> bool {
    range.start <= token.begin && token.end <= range.end && token.begin < range.end
}

/// How contents that are not text are passed to the template.
#[derive(Clone, Copy, PartialEq)]
enum Contents {
    /// As in Transformers: no content for null, and the object itself if a tool returns one.
    AsWritten,
    /// Always as text: empty for null, and the JSON of an object.
    Text,
}

/// Converts turns to the messages that a template expects.
struct Messages<'a> {
    template: &'a ChatTemplate,
    habits: &'a Habits,
    contents: Contents,
}

impl Messages<'_> {
    fn message(&self, turn: &Turn) -> Value {
        let written = &turn.written;
        // Templates test whether a key is present, so absent fields are omitted.
        let mut fields = Vec::new();
        // gpt-oss's name for the reasoning, which Transformers adds too, in this order.
        fields.extend(turn.reasoning.as_ref().map(|reasoning| ("thinking", Value::from(reasoning.as_str()))));
        let own = written.role.as_deref().filter(|role| self.habits.knows_role(self.template, role));
        fields.push(("role", Value::from(own.unwrap_or(turn.role.name()))));
        match (&written.value, self.contents) {
            (Some(value), Contents::AsWritten) => fields.push(("content", python::from_json(value))),
            (None, Contents::AsWritten) if written.without_content => {}
            _ => fields.push(("content", self.habits.content(turn))),
        }
        fields.extend(turn.reasoning.as_ref().map(|reasoning| ("reasoning_content", Value::from(reasoning.as_str()))));
        fields.extend(turn.tool_calls.as_ref().map(|calls| ("tool_calls", python::from_json(calls))));
        fields.extend(turn.tool_call_id.as_ref().map(|id| ("tool_call_id", Value::from(id.as_str()))));
        fields.extend(turn.name.as_ref().map(|name| ("name", Value::from(name.as_str()))));
        fields.extend(written.others.iter().map(|(key, value)| (key.as_str(), python::from_json(value))));
        Value::from_pairs(fields)
    }
}

fn check(example: &Example) -> Result<()> {
    if example.turns.len() > usize::from(u16::MAX) {
        return Err(Error::new(format!("expected at most {} turns, found {}", u16::MAX, example.turns.len())));
    }
    for turn in &example.turns {
        if u32::try_from(turn.content.len()).is_err() {
            return Err(Error::new(format!("expected at most 4 GiB of text in a turn, found {} bytes", turn.content.len())));
        }
        if turn.content.contains(is_mark) || turn.reasoning.as_ref().is_some_and(|reasoning| reasoning.contains(is_mark)) {
            return Err(Error::new("the text contains a Unicode noncharacter (U+FDD0 to U+FDD2)")
                .cure("It comes from a broken conversion: remove it."));
        }
    }
    Ok(())
}

/// Returns the position of each token in the contents. A token of the template gets the turn that it belongs to or follows.
fn spans(tokens: &[Token], layout: &Layout) -> Vec<Span> {
    let mut turn = 0;
    tokens
        .iter()
        .map(|token| {
            let content = layout.contents.iter().find(|p| p.at < token.end && token.begin < p.at + p.len);
            if let Some(placed) = content {
                turn = placed.turn;
                // A token can reach across the edge of the content, such as a space of the template and the first word.
                let inside = |at: usize| (placed.begin + at.clamp(placed.at, placed.at + placed.len) - placed.at) as u32;
                return Span { turn: turn as u16, begin: inside(token.begin), end: inside(token.end) };
            }
            if let Some(answer) = layout.answers.iter().find(|answer| holds(&answer.range, token)) {
                turn = answer.turn;
            }
            Span { turn: turn as u16, begin: 0, end: 0 }
        })
        .collect()
}

/// Whether an empty reasoning block is supervised. The text before the answer may have opened it.
fn has_empty_think(text: &str, answer: &Range<usize>) -> bool {
    const BEGIN: &str = "<think>";
    let from = if text[..answer.start].trim_end().ends_with(BEGIN) { text[..answer.start].rfind(BEGIN) } else { None };
    let block = &text[from.unwrap_or(answer.start)..answer.end];
    block.split(BEGIN).skip(1).any(|after| after.trim_start().starts_with("</think>"))
}

fn truncate(rendered: &mut Rendered, max_len: usize) {
    let Rendered { sequence, target_weights, audit } = rendered;
    let n_tokens = sequence.ids.len();
    if n_tokens <= max_len {
        return;
    }
    audit.truncated = Some(n_tokens);
    audit.answer_cut = sequence.supervised[max_len..].contains(&true);
    sequence.ids.truncate(max_len);
    sequence.supervised.truncate(max_len);
    target_weights.truncate(sequence.n_targets());
    sequence.spans.truncate(max_len);
    audit.empty_mask = !sequence.has_targets();
    // A truncated end is not also reported as missing.
    audit.missing_end_of_turn &= !audit.answer_cut;
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
