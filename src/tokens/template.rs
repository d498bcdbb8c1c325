//! Runs a model's chat template as Transformers does.
//!
//! The environment is that of Transformers (utils/chat_template_utils.py, `_cached_compile_jinja_template`): trimmed blocks, the methods of
//! Python's strings and dictionaries, `tojson`, `raise_exception`, `strftime_now`, loop controls. `strftime_now` differs in one point: it returns
//! one time (in UTC) for the whole process, so that all rows of a run agree; SOURCE_DATE_EPOCH sets it.
//!
//! Constructs that minijinja interprets differently than Jinja are translated before compilation (`syntax`). One of them is
//! `{% generation %} .. {% endgeneration %}`, which encloses what the model should write: it becomes two marks that no text can contain, from which
//! [`ChatTemplate::render_marked`] derives the ranges.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::merge_maps;
use minijinja::{Environment, ErrorKind, Value};

use super::marks::{GENERATION_BEGIN, GENERATION_END, is_mark};
use super::syntax::{Translated, translate};
use super::tokenizer::Tokenizer;
use super::{filters, iterables, methods, python};
use crate::error::{Context, Error, Result};
use crate::files::sha256;

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    sha256: String,
    /// The names that the template reads and does not assign itself.
    variables: HashSet<String>,
    has_generation_tags: bool,
    /// Variables with Transformers' names of special tokens: `bos_token`, `pad_token`. An absent one is undefined.
    special_tokens: BTreeMap<String, String>,
    /// Seconds since 1970, for `strftime_now`.
    now: Arc<AtomicU64>,
    /// The template named `tool_use`, which Transformers uses for conversations with tools.
    tool_use: Option<Box<ChatTemplate>>,
}

/// Returns the variables in `{% set x = x | default(..) %}`, which minijinja takes for assigned before they are read.
fn set_from_themselves(source: &str) -> impl Iterator<Item = String> {
    source.split("{%").filter_map(|block| {
        let statement = block.split("%}").next()?.trim_matches(['-', '+']).trim_start().strip_prefix("set ")?;
        let (name, value) = statement.split_once('=')?;
        let mut words = value.split(|c: char| !c.is_alphanumeric() && c != '_');
        words.any(|word| word == name.trim()).then(|| name.trim().to_owned())
    })
}

/// The variables of a template besides the messages.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Surroundings<'a> {
    /// The list of tool schemas, for a conversation with tools.
    pub tools: Option<&'a Value>,
    /// A map of further variables, such as `enable_thinking`.
    pub switches: Option<&'a Value>,
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the texts of the special tokens, for templates that write them.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        let cure =
            "The template comes from the model's chat_template.jinja, tokenizer_config.json or GGUF file; correct it there.";
        if source.contains(is_mark) {
            return Err(Error::new("the chat template contains a Unicode noncharacter (U+FDD0 to U+FDD2)").cure(cure));
        }
        let Translated { source: translated, has_generation_tags } = translate(source)?;
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().context("no syntax")?;
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(methods::call);
        environment.set_formatter(python::write);
        filters::add(&mut environment);
        environment.remove_global("debug");
        environment.add_test("iterable", python::is_iterable);
        environment.add_test("sequence", python::is_sequence);
        environment.add_test("mapping", iterables::is_dictionary);
        environment.add_function("range", iterables::range);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        let now = Arc::new(AtomicU64::new(python::now()?));
        let read = now.clone();
        environment.add_function("strftime_now", move |format: String| python::strftime(read.load(Ordering::Relaxed), &format));
        environment
            .add_template_owned(NAME, translated)
            .context("the chat template does not compile")
            .map_err(|error| error.cure(cure))?;
        let template = environment.get_template(NAME).context("the chat template does not compile")?;
        let mut variables = template.undeclared_variables(false);
        variables.extend(set_from_themselves(template.source()));
        Ok(Self {
            environment,
            source: source.to_owned(),
            sha256: sha256(source),
            variables,
            has_generation_tags,
            special_tokens: [("bos_token", bos), ("eos_token", eos)]
                .into_iter()
                .filter_map(|(name, token)| Some((name.to_owned(), token?.to_owned())))
                .collect(),
            now,
            tool_use: None,
        })
    }

    /// Adds special tokens that the template may refer to.
    pub fn with_special_tokens(mut self, tokens: impl IntoIterator<Item = (String, String)>) -> Self {
        self.special_tokens.extend(tokens);
        self
    }

    /// Whether a variable of this name can change what the template prints.
    pub(super) fn reads(&self, variable: &str) -> bool {
        self.variables.contains(variable)
    }

    /// Whether the source contains this text, such as a role in quotes.
    pub(super) fn spells(&self, text: &str) -> bool {
        self.source.contains(text)
    }

    /// The source, as the template was written.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Reads a template of the user's own, for a model that has the template `own` or none.
    pub fn from_file(path: &Path, own: Option<&ChatTemplate>, tokenizer: &Tokenizer) -> Result<Self> {
        let source = std::fs::read_to_string(path).context_at(path, "cannot read the chat template")?;
        let token = |id: Option<u32>| id.map(|id| tokenizer.text(id));
        let (bos, eos) = (token(tokenizer.bos()), token(tokenizer.eos()));
        let template = Self::new(&source, bos.as_deref(), eos.as_deref()).map_err(|error| error.at(path))?;
        Ok(match own {
            Some(own) => Self { special_tokens: own.special_tokens.clone(), ..template },
            None => template,
        })
    }

    /// Adds a template for conversations with tools.
    pub fn with_tool_use(mut self, other: ChatTemplate) -> Self {
        self.sha256 = sha256(format!("{} {}", self.sha256, other.sha256));
        self.tool_use = Some(Box::new(other));
        self
    }

    pub(super) fn take_tool_use(&mut self) -> Option<ChatTemplate> {
        self.tool_use.take().map(|template| *template)
    }

    /// SHA-256 of the template's source, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Returns the text of a short conversation if it depends on the time, that is, if the template writes the date with these switches. No other
    /// rendering may happen concurrently.
    pub(super) fn dated(&self, switches: Option<&Value>) -> Option<String> {
        // Changes the day, the month, the year and the hour.
        const LATER: u64 = (365 + 31 + 1) * 86_400 + 3600 + 61;
        let messages = [minijinja::context! { role => "user", content => "a" }];
        let text = || self.render(&messages, Surroundings { tools: None, switches }, true).ok();
        let own = text()?;
        self.now.fetch_add(LATER, Ordering::Relaxed);
        let later = text();
        self.now.fetch_sub(LATER, Ordering::Relaxed);
        (later.as_ref() != Some(&own)).then_some(own)
    }

    /// Whether the template marks its answers by `{% generation %}`.
    pub fn has_generation_tags(&self) -> bool {
        self.has_generation_tags
    }

    /// Renders a conversation. `messages` are in the template's form: maps with `role`, `content` and so on.
    pub(super) fn render(&self, messages: &[Value], around: Surroundings, add_generation_prompt: bool) -> Result<String> {
        let mut text = self.run(messages, around, add_generation_prompt)?;
        if self.has_generation_tags {
            text.retain(|c| !matches!(c, GENERATION_BEGIN | GENERATION_END));
        }
        Ok(text)
    }

    /// Renders a conversation, and returns the byte ranges of the text that the template marks as the model's.
    pub(super) fn render_marked(&self, messages: &[Value], around: Surroundings) -> Result<(String, Vec<Range<usize>>)> {
        let marked = self.run(messages, around, false)?;
        let mut text = String::with_capacity(marked.len());
        let (mut open, mut blocks) = (None, Vec::new());
        for c in marked.chars() {
            match c {
                GENERATION_BEGIN => open = Some(text.len()),
                GENERATION_END => blocks.extend(open.take().map(|begin| begin..text.len())),
                c => text.push(c),
            }
        }
        Ok((text, blocks))
    }

    fn run(&self, messages: &[Value], around: Surroundings, add_generation_prompt: bool) -> Result<String> {
        #[cfg(test)]
        RENDERED.set(RENDERED.get() + messages.len());
        let template = self.environment.get_template(NAME).context("the chat template is gone")?;
        let given = minijinja::context! {
            messages => Value::from(messages.to_vec()),
            tools => around.tools,
            documents => Value::from(()),
            add_generation_prompt => add_generation_prompt,
        };
        // Of two values of one name the later is taken: as in Transformers, a switch may replace a special token.
        let tokens = self.special_tokens.iter().map(|(name, token)| (name.as_str(), token.as_str()));
        let context = merge_maps([Value::from_pairs(tokens), around.switches.cloned().unwrap_or_default(), given]);
        template.render(context).context("the chat template rejected the conversation")
    }
}

#[cfg(test)]
thread_local! {
    /// The number of messages that this thread has rendered, with repetitions.
    pub(super) static RENDERED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::test_models::{GENERATION, message};

    #[test]
    fn generation_tags_mark_the_answer_and_change_nothing_else() {
        let template = ChatTemplate::new(GENERATION, None, None).unwrap();
        let messages =
            [message("user", "Hi"), message("assistant", "Hello"), message("user", "Bye"), message("assistant", "So long")];
        let (text, blocks) = template.render_marked(&messages, Surroundings::default()).unwrap();
        assert_eq!(text, "<|user|>Hi<|end|>\n<|assistant|>Hello<|end|>\n<|user|>Bye<|end|>\n<|assistant|>So long<|end|>\n");
        let marked: Vec<&str> = blocks.iter().map(|block| &text[block.clone()]).collect();
        assert_eq!(marked, ["Hello<|end|>", "So long<|end|>"]);
        assert_eq!(template.render(&messages, Surroundings::default(), false).unwrap(), text);
    }

    #[test]
    fn tags_keep_their_whitespace_control() {
        let template = ChatTemplate::new("a\n{%- generation -%}\n b\n  {%+ endgeneration %}\nc", None, None).unwrap();
        let (text, blocks) = template.render_marked(&[], Surroundings::default()).unwrap();
        let marked: Vec<&str> = blocks.iter().map(|block| &text[block.clone()]).collect();
        assert_eq!((text.as_str(), marked), ("ab\n  c", vec!["b\n  "]));
    }

    #[test]
    fn the_environment_is_the_one_of_transformers() {
        let check = |source: &str, expected: &str| {
            let template = ChatTemplate::new(source, Some("<s>"), None).unwrap();
            assert_eq!(template.render(&[message("user", " Hi ")], Surroundings::default(), true).unwrap(), expected, "{source}");
        };
        check("{{ bos_token }}{{ eos_token }}{{ messages[0].content.strip() }}", "<s>Hi");
        check("{% if tools is none and not documents %}\n  yes\n{% endif %}", "  yes\n");
        check("{% for i in range(5) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01");
        check("{{ messages[0]['role'].startswith('us') }} {{ none }}", "True None");
        check("{{ messages[::-1][0].role }}{{ add_generation_prompt }}", "userTrue");
        check(
            "{{ tools is iterable }} {{ x is iterable }} {{ 'a' is iterable }} {{ {} is iterable }} {{ 1 is iterable }}",
            "False True True True False",
        );
        check("{{ 'a' is sequence }} {{ {} is sequence }} {{ [] is sequence }} {{ none is sequence }}", "True True True False");
        check("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1");
    }

    #[test]
    fn a_switch_replaces_a_special_token() {
        let template =
            ChatTemplate::new("{{ bos_token }}{{ eos_token }}{{ messages[0].content }}", Some("<s>"), Some("</s>")).unwrap();
        let switches = minijinja::context! { bos_token => "<b>" };
        let around = Surroundings { tools: None, switches: Some(&switches) };
        assert_eq!(template.render(&[message("user", "Hi")], around, false).unwrap(), "<b></s>Hi");
    }

    #[test]
    fn a_template_can_refuse_and_its_words_are_kept() {
        let template = ChatTemplate::new("{{ raise_exception('roles must alternate') }}", None, None).unwrap();
        let error = template.render(&[], Surroundings::default(), false).unwrap_err().to_string();
        assert!(error.contains("roles must alternate"), "{error}");
        assert!(ChatTemplate::new("{% if %}", None, None).is_err());
    }

    #[test]
    fn a_template_that_writes_the_date_is_known_by_it() {
        let dated = |source: &str, switches: Option<&Value>| ChatTemplate::new(source, None, None).unwrap().dated(switches);
        let llama =
            "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}";
        let template = ChatTemplate::new(llama, None, None).unwrap();
        template.now.store(1_764_201_600, Ordering::Relaxed);
        assert_eq!(template.dated(None).unwrap(), "27 Nov 2025");
        // The time is restored.
        assert_eq!(template.render(&[], Surroundings::default(), false).unwrap(), "27 Nov 2025");
        assert_eq!(template.dated(Some(&minijinja::context! { date_string => "26 Jul 2024" })), None);
        for (source, is_dated) in [
            ("{{ messages[0].content }}", false),
            ("{{ strftime_now('%H') }}", true),
            ("{{ strftime_now('%d') }}", true),
            ("{{ strftime_now('%m') }}", true),
            ("{{ raise_exception('no') }}", false),
        ] {
            assert_eq!(dated(source, None).is_some(), is_dated, "{source}");
        }
    }

    #[test]
    fn the_hash_is_the_one_of_the_source() {
        // printf abc | sha256sum
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(ChatTemplate::new("abc", None, None).unwrap().sha256(), expected);
    }
}
