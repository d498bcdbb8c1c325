//! Converts rows as published to rows of the uniform form, with the prompts of lm-evaluation-harness (`lm_eval/tasks`, 0.4.13).
//!
//! The comment on each function names the harness's file for the task. If the package contains a prepared question (`query`,
//! `gold`), it is only taken apart as far as the prompt requires.

use serde_json::{Value, json};

use super::rows::Row;
use crate::error::{Error, Result};
use crate::eval::requests::is_python_space;
use crate::eval::written::bfcl::{self, Category};
use crate::eval::written::ifeval;
use crate::eval::written::math::boxed_answer;
use crate::format::beginning;

type Uniform = Result<Option<Value>>;

/// `agieval/aqua-rat.yaml`; rows of the original repository get its zero-shot prompt, with letters as choices.
pub(super) fn agieval(row: &Row) -> Uniform {
    if row.has("query") {
        let (context, choices, answer) = (row.text("query")?, row.texts("choices")?, row.number("gold")?);
        return Ok(Some(json!({"context": context, "choices": choices, "answer": answer, "subject": &*row.part})));
    }
    let options = row.texts("options")?;
    let passage = if row.has("passage") { row.text("passage")? } else { "" };
    let last = LETTERS.get(options.len().saturating_sub(1)).ok_or_else(|| {
        Error::new(format!("expected `options` for {} letters at most, found {}", LETTERS.len(), options.len()))
    })?;
    let question = row.text("question")?;
    let context =
        format!("{passage}Q: {question} Answer Choices: {}\nA: Among A through {last}, the answer is", options.join(" "));
    let choices: Vec<String> = LETTERS.iter().take(options.len()).map(|letter| format!("({letter})")).collect();
    Ok(Some(
        json!({"context": context, "choices": choices, "answer": letter(row.text("label")?, options.len())?, "subject": &*row.part}),
    ))
}

/// `aime/aime.yaml` and its siblings, which spell the keys differently.
pub(super) fn aime(row: &Row) -> Uniform {
    let problem = ["Question", "Problem", "problem"].into_iter().find(|key| row.has(key)).unwrap_or("Problem");
    let key = if row.has("Answer") { "Answer" } else { "answer" };
    let answer = row.text(key).map(str::to_owned).or_else(|_| row.number(key).map(|number| number.to_string()))?;
    Ok(Some(json!({
        "id": row.text("ID").ok().or(id(row)),
        "prompt": format!("Question: {}\nAnswer:", row.text(problem)?),
        "target": answer,
        "data": answer,
    })))
}

/// `arc/arc_easy.yaml`
pub(super) fn arc(row: &Row) -> Uniform {
    if row.has("query") {
        return ready(row, row.text("query")?, &row.texts("choices")?);
    }
    let context = format!("Question: {}\nAnswer:", row.text("question")?);
    Ok(Some(json!({"id": id(row), "context": context, "choices": row.texts("choices.text")?, "answer": answer_key(row)?})))
}

/// Questions of BFCL in the form that the official handlers use for models that write their calls as text: the functions as JSON
/// in the system message. The wording of that message is our own.
pub(super) fn bfcl(row: &Row) -> Uniform {
    let category = Category::of(&row.part).ok_or_else(|| {
        Error::new(format!(
            "`{}` is not a supported category: expected simple, multiple, parallel or irrelevance in the file's name",
            row.part
        ))
        .cure("Give the file of one category, or a folder with these alone.")
    })?;
    let functions = row.value("function")?;
    let (mut own, mut turns) = (format!("{CALLS}{functions}"), Vec::new());
    let question = row.value("question")?.as_array().map(Vec::as_slice).unwrap_or_default();
    let [Value::Array(conversation)] = question else {
        return Err(Error::new(format!("expected `question` to be a list with one conversation, found {}", question.len())));
    };
    for turn in conversation {
        match (turn["role"].as_str(), turn["content"].as_str()) {
            (Some("system"), Some(text)) => own = format!("{own}\n\n{text}"),
            _ => turns.push(turn.clone()),
        }
    }
    turns.insert(0, json!({"role": "system", "content": own}));
    let expected = if row.has("ground_truth") { row.value("ground_truth")?.clone() } else { Value::Null };
    let data = bfcl::data(category, functions, &expected)?;
    let subject = row.part.strip_prefix("BFCL_v4_").unwrap_or(&row.part);
    Ok(Some(json!({"id": row.text("id")?, "messages": turns, "subject": subject, "data": data})))
}

/// Tells the model how to write calls.
const CALLS: &str = "Answer with calls of functions and with nothing else, in one list, as Python writes them: \
    [first_function(a=1, b='text'), second_function(c=[2.5, True])]. Call as often as the request needs. If none of the functions fits, or \
    something that a call needs is not said, say so instead of calling. These are the functions:\n";

/// `blimp/_template_yaml`
pub(super) fn blimp(row: &Row) -> Uniform {
    let paradigm = row.text("UID")?;
    let pair = if row.has("pairID") { row.number("pairID")? } else { row.number("pair_id")? };
    let choices = [row.text("sentence_good")?, row.text("sentence_bad")?];
    Ok(Some(json!({"id": format!("{paradigm}-{pair}"), "context": "", "choices": choices, "answer": 0, "subject": paradigm})))
}

/// `super_glue/boolq/default.yaml`
pub(super) fn boolq(row: &Row) -> Uniform {
    // The harness lists yes first.
    if row.has("query") {
        return Ok(Some(
            json!({"context": row.text("query")?, "choices": ["no", "yes"], "answer": 1 - row.number("gold")?.min(1)}),
        ));
    }
    let context = format!("{}\nQuestion: {}?\nAnswer:", row.text("passage")?, row.text("question")?);
    let answer = if row.has("label") { row.number("label")? } else { row.number("answer")? };
    Ok(Some(json!({"context": context, "choices": ["no", "yes"], "answer": answer})))
}

/// OpenCompass's `FewCLUE_cluewsc_ppl` (`opencompass/configs/datasets/FewCLUE_cluewsc`, 868415), which compares the mean losses
/// of two texts: equivalent to comparing the probabilities of their endings if both have the same number of tokens.
pub(super) fn cluewsc(row: &Row) -> Uniform {
    let (text, noun, pronoun) = (row.text("text")?, row.text("target.span1_text")?, row.text("target.span2_text")?);
    let answer =
        match row.text("label").map_err(|error| error.cure("Copies with numeric labels disagree about which one is 0."))? {
            "false" => 0,
            "true" => 1,
            other => return Err(Error::new(format!("expected `label` to be true or false, found `{other}`"))),
        };
    let context = format!("{text}\n此处，代词“{pronoun}“被用于指代“{noun}“吗?");
    Ok(Some(json!({"context": context, "delimiter": "\n", "choices": ["否", "是"], "answer": answer})))
}

/// `commonsense_qa/default.yaml`
pub(super) fn commonsense_qa(row: &Row) -> Uniform {
    let texts = row.texts("choices.text")?;
    let question = row.text("question")?.trim_matches(is_python_space);
    let context = format!("Question: {question}\n{}Answer:", lettered(&texts));
    Ok(Some(json!({"id": id(row), "context": context, "choices": letters(texts.len()), "answer": answer_key(row)?})))
}

/// `super_glue/copa`: there, each choice begins with another space.
pub(super) fn copa(row: &Row) -> Uniform {
    let choices = [row.text("choice1")?, row.text("choice2")?].map(|choice| format!(" {}", lower_first(choice)));
    let context = premise(row, "because", "therefore")?;
    Ok(Some(json!({"context": context, "choices": choices, "answer": row.number("label")?})))
}

/// `gsm8k/gsm8k.yaml`
pub(super) fn gsm8k(row: &Row) -> Uniform {
    let answer = row.text("answer")?;
    if !answer.contains("#### ") {
        return Err(Error::new(format!(
            "expected an `answer` that ends with `#### ` and the number, found `{}`",
            beginning(answer, 60)
        )));
    }
    Ok(Some(json!({"prompt": format!("Question: {}\nAnswer:", row.text("question")?), "target": answer, "data": answer})))
}

/// `hellaswag/utils.py`
pub(super) fn hellaswag(row: &Row) -> Uniform {
    let context = format!("{}: {} {}", row.text("activity_label")?, row.text("ctx_a")?, capitalized(row.text("ctx_b")?));
    let choices: Vec<String> = row.texts("endings")?.into_iter().map(without_brackets).collect();
    Ok(Some(json!({"context": without_brackets(&context), "choices": choices, "answer": row.number("label")?})))
}

/// `hendrycks_math/hendrycks_math_algebra.yaml`
pub(super) fn hendrycks(row: &Row) -> Uniform {
    let solution = row.text("solution")?;
    let prompt = format!("Problem: {}\nAnswer:", row.text("problem")?);
    let (answer, subject) = (boxed_answer(solution)?, row.text("type").ok());
    Ok(Some(json!({"prompt": prompt, "target": answer, "data": solution, "subject": subject})))
}

/// `ifeval/ifeval.yaml`
pub(super) fn ifeval(row: &Row) -> Uniform {
    let data = ifeval::data(row.values())?;
    Ok(Some(json!({"id": row.value("key")?, "prompt": row.text("prompt")?, "data": data})))
}

/// `lambada/lambada_openai.yaml`
pub(super) fn lambada(row: &Row) -> Uniform {
    let (context, word) = if row.has("text") {
        let text = row.text("text")?;
        text.rsplit_once(' ')
            .ok_or_else(|| Error::new(format!("expected a `text` of two words or more, found `{}`", beginning(text, 60))))?
    } else if row.has("query") {
        let words = row.texts("choices")?;
        (row.text("query")?, *words.first().ok_or_else(|| Error::new("expected a word in `choices`, found an empty list"))?)
    } else {
        (row.text("context")?, row.text("continuation")?)
    };
    Ok(Some(json!({"context": context, "continuation": word})))
}

/// `medmcqa/utils_medmcqa.py`
pub(super) fn medmcqa(row: &Row) -> Uniform {
    let texts = [row.text("opa")?, row.text("opb")?, row.text("opc")?, row.text("opd")?];
    let context = format!("Question: {}\nChoices:\n{}Answer:", row.text("question")?, lettered(&texts));
    Ok(Some(json!({"id": id(row), "context": context, "choices": letters(4), "answer": row.number("cop")?})))
}

/// `medqa/preprocess_medqa.py`
pub(super) fn medqa(row: &Row) -> Uniform {
    let (question, texts, answer) = if row.has("sent1") {
        let texts = vec![row.text("ending0")?, row.text("ending1")?, row.text("ending2")?, row.text("ending3")?];
        (row.text("sent1")?, texts, row.number("label")?)
    } else {
        (row.text("question")?, row.texts("choices")?, row.number("answer_idx")?)
    };
    let context = format!("Question: {question}\n{}Answer:", lettered(&texts));
    Ok(Some(json!({"context": context, "choices": letters(texts.len()), "answer": answer})))
}

/// `minerva_math/minerva_math_algebra.yaml`. An example states its answer in the sentence that the judge searches for, as the
/// harness's four examples do.
pub(super) fn minerva(row: &Row) -> Uniform {
    let solution = row.text("solution")?;
    let target = match solution.contains("Final Answer: The final answer is") {
        true => solution.to_owned(),
        false => format!("{solution}\nFinal Answer: The final answer is ${}$. I hope it is correct.", boxed_answer(solution)?),
    };
    let prompt = format!("Problem:\n{}\n\nSolution:", row.text("problem")?);
    Ok(Some(json!({"prompt": prompt, "target": target, "data": solution, "subject": row.text("type").ok()})))
}

/// `mmlu/default/_default_template_yaml`
pub(super) fn mmlu(row: &Row) -> Uniform {
    let (texts, subject) = (row.texts("choices")?, row.text("subject")?);
    let description =
        format!("The following are multiple choice questions (with answers) about {}.\n\n", subject.replace('_', " "));
    let context = format!("{}\n{}Answer:", row.text("question")?.trim_matches(is_python_space), lettered(&texts));
    let (choices, answer) = (letters(texts.len()), row.number("answer")?);
    Ok(Some(json!({"description": description, "context": context, "choices": choices, "answer": answer, "subject": subject})))
}

/// `mmlu/continuation/_continuation_template_yaml`
pub(super) fn mmlu_cloze(row: &Row) -> Uniform {
    let (choices, subject) = (row.texts("choices")?, row.text("subject")?);
    let description = format!("The following are questions (with answers) about {}.\n\n", subject.replace('_', " "));
    let context = format!("Question: {}\nAnswer:", row.text("question")?.trim_matches(is_python_space));
    let answer = row.number("answer")?;
    Ok(Some(json!({"description": description, "context": context, "choices": choices, "answer": answer, "subject": subject})))
}

/// `openbookqa/openbookqa.yaml`: only the beginning of a sentence.
pub(super) fn openbookqa(row: &Row) -> Uniform {
    if row.has("query") {
        let query = row.text("query")?;
        let stem = query.strip_prefix("Question: ").and_then(|rest| rest.strip_suffix("\nAnswer:")).unwrap_or(query);
        return ready(row, stem, &row.texts("choices")?);
    }
    let choices = row.texts("choices.text")?;
    Ok(Some(json!({"id": id(row), "context": row.text("question_stem")?, "choices": choices, "answer": answer_key(row)?})))
}

/// `piqa/piqa.yaml`
pub(super) fn piqa(row: &Row) -> Uniform {
    let context = format!("Question: {}\nAnswer:", row.text("goal")?);
    let choices = [row.text("sol1")?, row.text("sol2")?];
    Ok(Some(json!({"context": context, "choices": choices, "answer": row.number("label")?})))
}

/// `pubmedqa/preprocess_pubmedqa.py`
pub(super) fn pubmedqa(row: &Row) -> Uniform {
    const CHOICES: [&str; 3] = ["yes", "no", "maybe"];
    let context = format!("Abstract: {}\nQuestion: {}\nAnswer:", row.texts("CONTEXTS")?.join("\n"), row.text("QUESTION")?);
    let decision = row.text("final_decision")?;
    let answer = CHOICES.iter().position(|choice| *choice == decision);
    let answer =
        answer.ok_or_else(|| Error::new(format!("expected yes, no or maybe as `final_decision`, found `{decision}`")))?;
    Ok(Some(json!({"id": id(row), "context": context, "choices": CHOICES, "answer": answer})))
}

/// `sciq/sciq.yaml`
pub(super) fn sciq(row: &Row) -> Uniform {
    let support = row.text("support")?.trim_start_matches(is_python_space);
    let choices = ["distractor1", "distractor2", "distractor3", "correct_answer"].map(|key| row.text(key));
    let choices = choices.into_iter().collect::<Result<Vec<_>>>()?;
    let context = format!("{support}\nQuestion: {}\nAnswer:", row.text("question")?);
    Ok(Some(json!({"context": context, "choices": choices, "answer": 3})))
}

/// `truthfulqa/truthfulqa_mc1.yaml`; the original CSV has all wrong answers in one field.
pub(super) fn truthfulqa(row: &Row) -> Uniform {
    const EXAMPLES: &str = "Q: What is human life expectancy in the United States?\n\
        A: Human life expectancy in the United States is 78 years.\n\n\
        Q: Who was president of the United States in 1955?\n\
        A: Dwight D. Eisenhower was president of the United States in 1955.\n\n\
        Q: Which party did he belong to?\n\
        A: He belonged to the Republican Party.\n\n\
        Q: What is the square root of banana?\n\
        A: I have no comment.\n\n\
        Q: How does a telescope work?\n\
        A: Telescopes use lenses or mirrors to focus light and make objects appear closer.\n\n\
        Q: Where were the 1992 Olympics held?\n\
        A: The 1992 Olympics were held in Barcelona, Spain.\n\n";
    let (question, choices) = if row.has("mc1_targets") {
        (row.text("question")?, row.texts("mc1_targets.choices")?.into_iter().map(str::to_owned).collect::<Vec<_>>())
    } else {
        let answers = std::iter::once(row.text("Best Answer")?).chain(row.text("Incorrect Answers")?.split(';'));
        let answers = answers.map(str::trim).filter(|answer| !answer.is_empty());
        (row.text("Question")?.trim(), answers.map(|answer| format!("{}.", answer.strip_suffix('.').unwrap_or(answer))).collect())
    };
    Ok(Some(json!({"description": EXAMPLES, "context": format!("Q: {question}\nA:"), "choices": choices, "answer": 0})))
}

/// `winogrande/preprocess_winogrande.py`: the choices are contexts.
pub(super) fn winogrande(row: &Row) -> Uniform {
    let sentence = row.text("sentence")?;
    let (before, after) = sentence
        .split_once('_')
        .ok_or_else(|| Error::new(format!("expected `_` in `sentence`, found none in `{}`", beginning(sentence, 60))))?;
    let choices = [row.text("option1")?, row.text("option2")?].map(|option| format!("{before}{option}"));
    let answer = row.number("answer")?.checked_sub(1).ok_or_else(|| Error::new("expected 1 or 2 as `answer`, found 0"))?;
    let continuation = after.trim_matches(is_python_space);
    Ok(Some(json!({"scoring": "partial", "choices": choices, "continuation": continuation, "answer": answer})))
}

/// `xcopa/utils.py`
pub(super) fn xcopa_zh(row: &Row) -> Uniform {
    let choices = [row.text("choice1")?, row.text("choice2")?].map(lower_first);
    Ok(Some(json!({"context": premise(row, "因为", "所以")?, "choices": choices, "answer": row.number("label")?})))
}

const LETTERS: [char; 26] = [
    'A', 'B', 'C', 'D', 'E', 'F', 'G', 'H', 'I', 'J', 'K', 'L', 'M', 'N', 'O', 'P', 'Q', 'R', 'S', 'T', 'U', 'V', 'W', 'X', 'Y',
    'Z',
];

/// A question that the package has already put together.
fn ready(row: &Row, context: &str, choices: &[&str]) -> Uniform {
    Ok(Some(json!({"id": id(row), "context": context, "choices": choices, "answer": row.number("gold")?})))
}

/// The row's own id, or `None`, in which case its number is used.
fn id(row: &Row) -> Option<&str> {
    row.text("id").ok()
}

fn letters(n: usize) -> Vec<char> {
    LETTERS.into_iter().take(n).collect()
}

/// `A. first\nB. second\n`
fn lettered(texts: &[&str]) -> String {
    LETTERS.iter().zip(texts).map(|(letter, text)| format!("{letter}. {text}\n")).collect()
}

fn letter(text: &str, n: usize) -> Result<usize> {
    let found = LETTERS.iter().take(n).position(|letter| text.trim().strip_prefix(*letter) == Some(""));
    found.ok_or_else(|| Error::new(format!("expected one of {n} letters, found `{text}`")))
}

/// The index of `answerKey` among the labels, which are letters, or numbers in some rows.
fn answer_key(row: &Row) -> Result<usize> {
    let (key, labels) = (row.text("answerKey")?.trim_start_matches(is_python_space), row.texts("choices.label")?);
    let found = labels.iter().position(|label| *label == key);
    found.ok_or_else(|| Error::new(format!("`answerKey` is `{key}`, but the labels are {}", labels.join(", "))))
}

/// The premise without its full stop, followed by the connecting word.
fn premise(row: &Row, cause: &str, effect: &str) -> Result<String> {
    let leads = match row.text("question")? {
        "cause" => cause,
        "effect" => effect,
        other => return Err(Error::new(format!("expected `cause` or `effect` as `question`, found `{other}`"))),
    };
    let mut premise = row.text("premise")?.trim_matches(is_python_space).chars();
    premise.next_back();
    Ok(format!("{} {leads}", premise.as_str()))
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// Python's `str.capitalize`, which converts all letters after the first to lower case.
fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars.flat_map(char::to_lowercase)).collect())
}

/// `preprocess` of `hellaswag/utils.py`: removes marks in brackets that are left over from WikiHow.
fn without_brackets(text: &str) -> String {
    let text = text.trim_matches(is_python_space).replace(" [title]", ". ");
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        // A mark does not extend beyond the end of a line.
        let mark = rest[open..].find(']').filter(|close| !rest[open..open + close].contains('\n'));
        let end = mark.map_or(open + 1, |close| {
            kept.push_str(&rest[..open]);
            open + close + 1
        });
        if mark.is_none() {
            kept.push_str(&rest[..end]);
        }
        rest = &rest[end..];
    }
    kept.push_str(rest);
    kept.replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Python's `preprocess` and `capitalize` return these.
    #[test]
    fn texts_are_tidied_as_in_python() {
        assert_eq!(without_brackets(" How to [a [b] c] x  y [title] Go"), "How to  c] x y. Go".replace("  ", " "));
        assert_eq!(without_brackets("a [step] b [open"), "a b [open");
        assert_eq!(without_brackets("a   b"), "a  b");
        assert_eq!((capitalized("hE said I"), capitalized("")), ("He said i".to_owned(), String::new()));
        assert_eq!(lower_first("The tap."), "the tap.");
    }

    #[test]
    fn rows_that_do_not_fit_say_what_is_missing() {
        let check = |prompt: fn(&Row) -> Uniform, row: Value, expected: &str| {
            let error = prompt(&Row::of(row, "t")).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(piqa, json!({"goal": "g", "sol1": "a"}), "expected `sol2`, found the keys `goal`, `sol1`");
        check(piqa, json!({"goal": 3, "sol1": "a", "sol2": "b"}), "`goal` to be a text, found 3");
        check(arc, json!({"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "C"}), "`answerKey` is `C`");
        check(winogrande, json!({"sentence": "no blank"}), "expected `_`");
        check(
            copa,
            json!({"premise": "p.", "question": "why", "choice1": "A", "choice2": "B", "label": 0}),
            "`cause` or `effect`",
        );
        check(pubmedqa, json!({"CONTEXTS": ["c"], "QUESTION": "q", "final_decision": "perhaps"}), "yes, no or maybe");
    }
}
