//! Joins the windows of texts. Windows are cut by tokens, so that a different `--max-len` or tokenizer makes them cover different
//! parts of a text.

use std::collections::HashMap;

use super::super::metrics::Sample;
use super::super::tasks::TaskKind;
use super::sides::TaskSamples;

/// Both sides with whole texts as their items, if texts were cut into different windows before and after.
pub(super) fn joined(old: &TaskSamples, new: &TaskSamples) -> Option<[TaskSamples; 2]> {
    let are_texts = [old, new].iter().all(|task| task.kind == Some(TaskKind::Text));
    (are_texts && !have_equal_windows(old, new)).then(|| [old, new].map(whole_texts))
}

/// Is every text that both sides have cut into the same windows, by their number and lengths in bytes?
fn have_equal_windows(old: &TaskSamples, new: &TaskSamples) -> bool {
    let [old, new] = [old, new].map(|task| {
        let mut texts: HashMap<&str, Vec<u32>> = HashMap::new();
        for sample in &task.samples {
            texts.entry(text_of_window(&sample.id)).or_default().push(sample.choices[0].bytes);
        }
        texts
    });
    old.iter().all(|(text, windows)| new.get(text).is_none_or(|others| others == windows))
}

fn whole_texts(task: &TaskSamples) -> TaskSamples {
    let mut texts: Vec<Sample> = Vec::new();
    for window in &task.samples {
        let id = text_of_window(&window.id);
        match texts.last_mut().filter(|text| text.id == id) {
            Some(text) => text.choices[0].join(&window.choices[0]),
            None => texts.push(Sample { id: id.to_owned(), ..window.clone() }),
        }
    }
    let (settings, primary, data_sha256) = (task.settings.clone(), task.primary.clone(), task.data_sha256.clone());
    TaskSamples { settings, primary, data_sha256, ..TaskSamples::of(TaskKind::Text, texts) }
}

/// The id of the text of a window, whose id is `TEXT:NUMBER`.
fn text_of_window(id: &str) -> &str {
    id.rsplit_once(':').map_or(id, |(text, _)| text)
}
