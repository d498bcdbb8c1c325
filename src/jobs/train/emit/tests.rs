//! Tests the emitted folders as the other programs would find them, and what is refused.

use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::dataset::Turn;
use crate::diagnosis::gate::{METHODS, Method, Normaliser};
use crate::model::LoraSettings;
use crate::tokens::Supervise;
use crate::train::schedule::Shape;

fn turn(role: Role, content: &str, weight: f32) -> Turn {
    let content = content.to_owned();
    Turn { weight, ..Turn::plain(role, content) }
}

fn example(turns: Vec<Turn>) -> Example {
    Example { source: "x".to_owned(), turns, ..Example::default() }
}

fn rows() -> Vec<Example> {
    let answers = vec![
        turn(Role::User, "Say \"hi\".", 1.0),
        turn(Role::Assistant, "hi\n", 1.0),
        turn(Role::User, "Again", 1.0),
        turn(Role::Assistant, "hi: #2", 1.0),
    ];
    vec![
        example(answers),
        example(vec![turn(Role::System, "Be brief.", 1.0), turn(Role::User, "?", 1.0), turn(Role::Assistant, "!", 1.0)]),
    ]
}

fn placed(rows: Vec<Example>) -> impl Iterator<Item = Result<(Place, Example)>> {
    let path = Arc::new(PathBuf::from("rows.jsonl"));
    (1..).zip(rows).map(move |(line, example)| Ok((Place { path: path.clone(), line }, example)))
}

fn recipe(loss: Loss) -> Recipe {
    Recipe {
        model: "HuggingFaceTB/SmolLM2-135M-Instruct".to_owned(),
        loss,
        supervise: Supervise::Assistant,
        learning_rate: 1e-5,
        schedule: Shape::Cosine,
        warm_up_steps: 3,
        length: Length::Epochs(2.0),
        steps: 4,
        batch_size: 64,
        devices: 8,
        max_len: 2048,
        weight_decay: 0.01,
        betas: (0.9, 0.999),
        epsilon: 1e-8,
        clip: Some(1.0),
        lora: None,
        bf16: true,
        seed: 7,
        validation: 0.05,
        eval_every: None,
        save_every: None,
        keep_checkpoints: 1,
        chat_template: None,
        template_switches: None,
        layer_class: "LlamaDecoderLayer".to_owned(),
        turn_ends: vec!["<|im_end|>".to_owned(), "</s>".to_owned()],
    }
}

fn loss(method: &str) -> Loss {
    eaft_like(method, None, None, None)
}

fn eaft(exponent: f32) -> Loss {
    eaft_like("eaft", Some(&format!("power:{exponent}")), None, None)
}

/// A method as changed by `--gate`, `--normaliser` and `--top-k`.
fn eaft_like(method: &str, gate: Option<&str>, normaliser: Option<Normaliser>, top_k: Option<usize>) -> Loss {
    let method: Method = method.parse().unwrap();
    Loss { method, gate: method.gate_under(gate, normaliser, top_k).unwrap(), kl_weight: 0.1 }
}

fn emitted(program: Program, recipe: &Recipe, rows: Vec<Example>) -> Result<(String, Vec<Value>, tempfile::TempDir)> {
    let folder = tempfile::tempdir().unwrap();
    let n = emit(program, recipe, placed(rows), &|_, _| Ok(()), folder.path())?;
    // Keep the folder for inspection and for PyYAML.
    if let Some(kept) = std::env::var_os("EMIT_OUT") {
        let name = program.name();
        fs::create_dir_all(Path::new(&kept).join(name)).unwrap();
        for entry in fs::read_dir(folder.path()).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, Path::new(&kept).join(name).join(path.file_name().unwrap())).unwrap();
        }
    }
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let data: Vec<Value> = read(DATA).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(data.len() as u64, n);
    serde_json::from_str::<Value>(&read(DEEPSPEED)).unwrap();
    Ok((read(CONFIG), data, folder))
}

/// The value of a key at the beginning of a line.
fn value<'a>(config: &'a str, key: &str) -> Option<&'a str> {
    config.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
}

#[test]
fn a_folder_for_llama_factory() {
    let (config, data, folder) = emitted(Program::LlamaFactory, &recipe(eaft(2.0)), rows()).unwrap();
    for (key, expected) in [
        ("model_name_or_path", "\"HuggingFaceTB/SmolLM2-135M-Instruct\""),
        ("stage", "sft"),
        ("finetuning_type", "full"),
        ("use_eaft_loss", "true"),
        ("eaft_alpha", "2.0"),
        ("per_device_train_batch_size", "4"),
        ("gradient_accumulation_steps", "2"),
        ("num_train_epochs", "2.0"),
        ("learning_rate", "1.0e-5"),
        ("lr_scheduler_type", "cosine"),
        ("warmup_steps", "3"),
        ("bf16", "true"),
        ("val_size", "0.05"),
        ("deepspeed", "\"deepspeed.json\""),
        ("seed", "7"),
    ] {
        assert_eq!(value(&config, key), Some(expected), "{key}");
    }
    // (ln 20 / 3)^2
    let clip: f64 = value(&config, "max_grad_norm").unwrap().parse().unwrap();
    assert!((clip - 0.997_157).abs() < 1e-6, "{clip}");
    assert!(config.contains("# EAFT: with H the entropy") && config.contains("FORCE_TORCHRUN=1 NPROC_PER_NODE=8"));
    assert_eq!(
        data[1],
        json!({"messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"},
        ]})
    );
    let info: Value = serde_json::from_slice(&fs::read(folder.path().join("dataset_info.json")).unwrap()).unwrap();
    assert_eq!((&info["train"]["file_name"], value(&config, "dataset")), (&json!("train.jsonl"), Some("\"train\"")));
}

#[test]
fn a_folder_for_axolotl() {
    let lora = LoraSettings { rank: 16, alpha: 32.0, dropout: 0.05, targets: vec!["q_proj".to_owned(), "v_proj".to_owned()] };
    let recipe = Recipe { lora: Some(lora), length: Length::Steps(100), supervise: Supervise::Last, ..recipe(eaft(1.0)) };
    let (config, data, folder) = emitted(Program::Axolotl, &recipe, rows()).unwrap();
    for (key, expected) in [
        ("base_model", "\"HuggingFaceTB/SmolLM2-135M-Instruct\""),
        ("adapter", "lora"),
        ("lora_target_modules", "[\"q_proj\", \"v_proj\"]"),
        ("use_eaft", "true"),
        ("eaft_alpha", "1.0"),
        ("eaft_k", "20"),
        ("micro_batch_size", "4"),
        ("max_steps", "100"),
        ("sequence_len", "2048"),
        ("excess_length_strategy", "truncate"),
        ("    message_field_training", "train"),
        ("    chat_template", "tokenizer_default"),
        ("eot_tokens", "[\"<|im_end|>\", \"</s>\"]"),
    ] {
        assert_eq!(value(&config, key), Some(expected), "{key}");
    }
    // axolotl counts the rows of all epochs together, and so fewer steps: it is told how many.
    let epochs = Recipe { length: Length::Epochs(2.0), ..recipe.clone() };
    let (config, ..) = emitted(Program::Axolotl, &epochs, rows()).unwrap();
    assert_eq!((value(&config, "num_epochs"), value(&config, "max_steps")), (Some("2.0"), Some("4")));
    // axolotl makes 2 warm-up steps of 1.
    let short = emitted(Program::Axolotl, &Recipe { warm_up_steps: 1, ..recipe.clone() }, rows());
    assert!(short.err().unwrap().to_string().contains("--warmup-steps 0 or 2"));
    // ln 20
    let clip: f64 = value(&config, "max_grad_norm").unwrap().parse().unwrap();
    assert!((clip - 2.995_732).abs() < 1e-6, "{clip}");
    assert!(config.contains("transformer_layer_cls_to_wrap: LlamaDecoderLayer") && config.contains("does not divide"));
    let trained: Vec<bool> = data[0]["messages"].as_array().unwrap().iter().map(|m| m["train"].as_bool().unwrap()).collect();
    assert_eq!(trained, [false, false, false, true], "the last answer only");
    assert!(!folder.path().join("dataset_info.json").exists());
}

#[test]
fn a_template_of_ones_own_goes_along_where_the_program_takes_one() {
    let recipe = Recipe { chat_template: Some("{{ messages }}\n".to_owned()), ..recipe(eaft(1.0)) };
    let (config, _, folder) = emitted(Program::Axolotl, &recipe, rows()).unwrap();
    for indent in ["", "    "] {
        assert_eq!(value(&config, &format!("{indent}chat_template")), Some("jinja"));
        assert_eq!(value(&config, &format!("{indent}chat_template_jinja")), Some("\"chat_template.jinja\""));
    }
    assert_eq!(fs::read_to_string(folder.path().join("chat_template.jinja")).unwrap(), "{{ messages }}\n");
    let error = emitted(Program::LlamaFactory, &recipe, rows()).unwrap_err().to_string();
    assert!(error.contains("cannot use a chat template file"), "{error}");
}

#[test]
fn adapters_of_all_linear_modules() {
    let lora = LoraSettings { rank: 16, alpha: 32.0, dropout: 0.0, targets: Vec::new() };
    let recipe = Recipe { lora: Some(lora), ..recipe(eaft(1.0)) };
    let config = |program| emitted(program, &recipe, rows()).unwrap().0;
    assert_eq!(value(&config(Program::LlamaFactory), "lora_target"), Some("all"));
    let axolotl = config(Program::Axolotl);
    assert_eq!((value(&axolotl, "lora_target_linear"), value(&axolotl, "lora_target_modules")), (Some("true"), None));
}

#[test]
fn plain_and_other_losses_of_llama_factory() {
    let config = |loss| emitted(Program::LlamaFactory, &recipe(loss), rows()).unwrap().0;
    let sft = config(loss("sft"));
    assert!(!sft.contains("use_") && !sft.contains("EAFT") && value(&sft, "max_grad_norm") == Some("1.0"));
    assert_eq!(value(&config(loss("dft")), "use_dft_loss"), Some("true"));
    let asft = config(loss("asft"));
    assert_eq!((value(&asft, "use_asft_loss"), value(&asft, "asft_alpha")), (Some("true"), Some("0.1")));
    assert!(asft.contains("ref_model: \"HuggingFaceTB"));
    // The other normalisers: H / 3 unchanged, and H, under either of their names.
    for (gate, normaliser, clip) in [
        ("llama-factory", None, 1.0),
        ("linear", Some(Normaliser::Three), 1.0),
        ("axolotl", None, 1.0 / 3.0),
        ("power:2", Some(Normaliser::None), 1.0 / 9.0),
    ] {
        let config = config(eaft_like("eaft", Some(gate), normaliser, None));
        let found: f64 = value(&config, "max_grad_norm").unwrap().parse().unwrap();
        assert!((found - clip).abs() < 1e-12, "{gate}: {found}");
    }
}

#[test]
fn what_the_others_cannot_do_is_refused_by_name() {
    let check = |program: Program, recipe: Recipe, rows: Vec<Example>, expected: &str| {
        let error = emitted(program, &recipe, rows).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(expected), "expected `{expected}` in `{error}`");
    };
    let (factory, axolotl) = (Program::LlamaFactory, Program::Axolotl);
    // Every method is either written for the other program or refused by name.
    let (by_factory, by_axolotl) = (["sft", "eaft", "dft", "asft"], ["sft", "eaft"]);
    for method in METHODS {
        let name = if method.name == "mask" { "eaft:mask:0.15" } else { method.name };
        for (program, offered) in [(factory, &by_factory[..]), (axolotl, &by_axolotl[..])] {
            let recipe = recipe(loss(method.name));
            match offered.contains(&method.name) {
                true => drop(emitted(program, &recipe, rows()).unwrap()),
                false => check(program, recipe, rows(), &format!("has no loss equivalent to `{name}`")),
            }
        }
    }
    let sigmoid = eaft_like("eaft", Some("sigmoid:30,0.17"), None, None);
    check(factory, recipe(sigmoid), rows(), "`eaft:sigmoid:30,0.17`");
    check(axolotl, recipe(sigmoid), rows(), "`eaft:sigmoid:30,0.17`");
    check(factory, recipe(eaft_like("eaft", None, None, Some(50))), rows(), "top 20, not of 50");
    check(factory, Recipe { model: "a/b.GGUF".to_owned(), ..recipe(eaft(1.0)) }, rows(), "GGUF");
    check(factory, Recipe { batch_size: 12, ..recipe(eaft(1.0)) }, rows(), "12 sequences per step");
    check(factory, Recipe { supervise: Supervise::All, ..recipe(eaft(1.0)) }, rows(), "whole text");
    let lora = LoraSettings { rank: 4, alpha: 2.5, dropout: 0.0, targets: vec!["q_proj".to_owned()] };
    for (program, said) in
        [(axolotl, "axolotl: expected a whole"), (factory, "LLaMA-Factory: expected a whole number for lora_alpha, found 2.5")]
    {
        check(program, Recipe { lora: Some(lora.clone()), ..recipe(eaft(1.0)) }, rows(), said);
    }

    let text = example(vec![turn(Role::Text, "words", 1.0)]);
    check(axolotl, recipe(eaft(1.0)), vec![rows().remove(0), text], "rows.jsonl:2: a plain text");
    let weighted = |weight| {
        vec![example(vec![
            turn(Role::User, "a", 1.0),
            turn(Role::Assistant, "b", weight),
            turn(Role::User, "c", 1.0),
            turn(Role::Assistant, "d", 1.0),
        ])]
    };
    check(axolotl, recipe(eaft(1.0)), weighted(0.5), "the weight 0.5");
    check(factory, recipe(eaft(1.0)), weighted(0.0), "the weight 0;");
    // Rows that LLaMA-Factory's own reader skips.
    let speakers = |roles: &[Role]| vec![example(roles.iter().map(|role| turn(*role, "a", 1.0)).collect())];
    check(factory, recipe(eaft(1.0)), speakers(&[Role::User, Role::User, Role::Assistant]), "turn 1 breaks the order");
    check(factory, recipe(eaft(1.0)), speakers(&[Role::Assistant, Role::User, Role::Assistant]), "turn 0 breaks the order");
    check(factory, recipe(eaft(1.0)), speakers(&[Role::System, Role::User, Role::Assistant, Role::User]), "end with an answer");
    emitted(factory, &recipe(eaft(1.0)), speakers(&[Role::System, Role::User, Role::Assistant])).unwrap();
    // axolotl's configuration has the template's variables, LLaMA-Factory's has not.
    let switched = Recipe { template_switches: Some(json!({"today": "1 May", "share": 1e-5})), ..recipe(eaft(1.0)) };
    check(factory, switched.clone(), rows(), "--chat-template-kwargs would be lost");
    let (config, ..) = emitted(axolotl, &switched, rows()).unwrap();
    assert_eq!(value(&config, "chat_template_kwargs"), Some(r#"{"today": "1 May", "share": 1.0e-5}"#));
    let call = json!([{"type": "function", "function": {"name": "f", "arguments": "x = 1"}}]);
    let calls = vec![turn(Role::User, "a", 1.0), Turn { tool_calls: Some(call), ..turn(Role::Assistant, "", 1.0) }];
    check(axolotl, recipe(eaft(1.0)), vec![example(calls)], "text that holds no JSON object, `x = 1`");
    let mut tools = rows().remove(0);
    tools.tools = Some(json!([]));
    check(factory, recipe(eaft(1.0)), vec![tools], "offers tools");
    assert!("trl".parse::<Program>().unwrap_err().to_string().contains("llama-factory, axolotl"));
}

#[test]
fn a_folder_in_use_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    let error =
        emit(Program::Axolotl, &recipe(eaft(1.0)), placed(rows()), &|_, _| Ok(()), folder.path()).unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn what_is_refused_half_way_leaves_nothing_behind() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("out");
    let with_text = [rows(), vec![example(vec![turn(Role::Text, "words", 1.0)])]].concat();
    emit(Program::Axolotl, &recipe(eaft(1.0)), placed(with_text), &|_, _| Ok(()), &folder).unwrap_err();
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    // The folder of a killed run does not block it either.
    fs::create_dir(parent.path().join(".out.partial")).unwrap();
    fs::write(parent.path().join(".out.partial/left.txt"), "half").unwrap();
    assert_eq!(emit(Program::Axolotl, &recipe(eaft(1.0)), placed(rows()), &|_, _| Ok(()), &folder).unwrap(), 2);
    assert!(folder.join(CONFIG).is_file() && !folder.join("left.txt").exists());
}

#[test]
fn how_often_it_is_looked_at_and_saved_is_told() {
    let recipe = Recipe { eval_every: Some(3), save_every: Some(7), keep_checkpoints: 5, ..recipe(eaft(1.0)) };
    for (program, expected) in [
        (
            Program::LlamaFactory,
            &[("eval_strategy", "steps"), ("eval_steps", "3"), ("save_strategy", "steps"), ("save_steps", "7")][..],
        ),
        (Program::Axolotl, &[("eval_steps", "3"), ("save_steps", "7")]),
    ] {
        let (config, ..) = emitted(program, &recipe, rows()).unwrap();
        for (key, expected) in [expected, &[("save_total_limit", "5")]].concat() {
            assert_eq!(value(&config, key), Some(expected), "{key} in\n{config}");
        }
        assert!(!config.contains("epoch:") && !config.contains("saves_per_epoch"), "{config}");
    }
}

#[test]
fn tools_and_arguments_of_calls_become_texts() {
    let calls = json!([{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]);
    let mut call = turn(Role::Assistant, "", 1.0);
    call.tool_calls = Some(calls);
    let mut result = turn(Role::Tool, "2", 1.0);
    result.name = Some("add".to_owned());
    let mut example = example(vec![call, result]);
    example.tools = Some(json!([{"function": {"name": "add", "parameters": {"default": null}}}]));
    let row = row(Program::Axolotl, &recipe(eaft(1.0)), &example).unwrap();
    assert_eq!(row["messages"][0]["tool_calls"][0]["function"]["arguments"], "{\"a\": 1}");
    assert_eq!(row["tools"], "[{\"function\": {\"name\": \"add\", \"parameters\": {\"default\": null}}}]");
    assert_eq!(row["messages"][1], json!({"role": "tool", "content": "2", "train": false, "name": "add"}));
}
