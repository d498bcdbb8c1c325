//! The library in a few lines: prints how probable a model finds each token of a text, and which token it expected.
//!
//! MODEL is a folder or a .gguf file:
//!
//!     cargo run --release --example surprising_tokens -- MODEL "The capital of Australia is Perth."

use diagnose::engine::score;
use diagnose::model::{LoadOptions, Model, Reference};
use diagnose::tokens::Sequence;

fn main() -> diagnose::Result<()> {
    let [model, text] = [1, 2].map(|i| std::env::args_os().nth(i).unwrap_or_default().to_string_lossy().into_owned());
    let reference = Reference::local(model.as_ref())?;
    let model = Model::load(&reference, LoadOptions::default(), 2048)?;
    let ids: Vec<u32> = model.tokenizer.encode(&text)?.iter().map(|token| token.id).collect();
    // Nothing before the first token predicts it.
    let supervised = (0..ids.len()).map(|i| i > 0).collect();
    let sequence = Sequence { row: 0, spans: Vec::new(), supervised, ids: ids.clone() };
    for (id, token) in ids[1..].iter().zip(&score(&model, &[sequence])?[0]) {
        let (text, top) = (model.tokenizer.text(*id), model.tokenizer.text(token.top_id));
        println!("{text:>12}  p {:.4}  entropy {:.2} nat  expected {top}", token.logprob.exp(), token.entropy);
    }
    Ok(())
}
