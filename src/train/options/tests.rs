//! Tests how a file and the command line combine, which names of other programs are accepted, and what is rejected.

use super::*;

fn table(text: &str) -> toml::Table {
    text.parse().unwrap()
}

#[test]
fn the_command_line_goes_over_the_file_and_what_is_saved_reads_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("train.toml");
    std::fs::write(&file, "datasets = ['a.jsonl']\nmethod = 'dft'\nlr = 1e-3\n[mix]\nchat = 0.5\n").unwrap();
    let options = Options::resolve(Some(&file), table("method = 'sft-kl'\nkl-weight = 0.25")).unwrap();
    assert_eq!((options.method.name, options.kl_weight, options.learning_rate()), ("sft-kl", Some(0.25), 1e-3));
    assert_eq!((options.mix["chat"], options.batch_size), (0.5, 16));
    let yaml = folder.path().join("train.yaml");
    std::fs::write(
        &yaml,
        "datasets: [a.jsonl]\nmethod: sft-kl\nkl_weight: 0.25 # comment\ngate: null\nlr: 1e-3\nmix:\n  chat: 0.5\n",
    )
    .unwrap();
    assert_eq!(Options::resolve(Some(&yaml), toml::Table::new()).unwrap(), options);
    let again = folder.path().join("again.toml");
    std::fs::write(&again, options.to_toml().unwrap()).unwrap();
    assert_eq!(Options::resolve(Some(&again), toml::Table::new()).unwrap(), options);
}

#[test]
fn names_of_other_programs_are_taken_or_answered_with_ours() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("llama_factory.yaml");
    let read = |text: &str| {
        std::fs::write(&file, text).unwrap();
        Options::resolve(Some(&file), toml::Table::new())
    };
    let options = read(
        "datasets: a.jsonl\nlearning_rate: 1.0e-4\nnum_train_epochs: 2.5\ncutoff_len: 512\nlora_rank: 8\nlora_target: all\n\
         warmup_steps: 0.1\nlora: true\nlr_scheduler_type: constant_with_warmup\n",
    )
    .unwrap();
    assert_eq!((options.lr, options.epochs, options.max_len, options.lora_r), (Some(1e-4), 2.5, Some(512), 8));
    assert_eq!(
        (options.warmup(95), options.schedule, options.lora().unwrap().targets),
        (10, Shape::ConstantWithWarmup, Vec::new())
    );
    for (line, expected) in [
        ("gradient_accumulation_steps: 4", "batch-size"),
        ("finetuning_type: lora", "lora = true"),
        ("use_eaft_loss: true", "method = \"eaft\""),
        ("max_samples: 100", "Use limit, the first records of all files together"),
        ("mask_history: true", "supervise = \"last\" for true"),
        ("train_on_prompt: true", "supervise = \"all\" for true"),
        ("train_on_inputs: false", "leave it out for false"),
        ("roles_to_train: [assistant]", "the assistant's turns are learnt"),
        ("train_on_eos: all", "as `turn` says"),
        ("lr: 1.0\nlearning_rate: 1.0", "another name of `lr`"),
    ] {
        let error = read(&format!("datasets: [a.jsonl]\n{line}\n")).unwrap_err();
        assert!(error.to_string().contains(expected) && error.exit_code() == 2, "{line}: {error}");
    }
    // The error lists all unknown options of a file, and suggests known names.
    let error =
        read("datasets: [a.jsonl]\nbf16: true\nuse_dft_loss: true\nlearning_rte: 1.0e-4\nbatchsize: 4\ndeepspeed_zz: x\n")
            .unwrap_err();
    let told = error.to_string();
    for expected in [
        "options of the file are not",
        "`use_dft_loss`: Use method",
        "`batchsize`: did you mean batch-size?",
        "`deepspeed_zz`: unknown to this program",
    ] {
        assert!(told.contains(expected), "{told}");
    }
    assert!(read("datasets: [a.jsonl]\nlearning_rte: 1.0e-4\n").unwrap_err().to_string().contains("an option of the file"));
}

/// The answer must never be to leave out an option that changes the training: it either has a counterpart here, or its absence is
/// stated to change the training.
#[test]
fn keys_of_other_programs_are_answered_by_what_they_change() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("theirs.yaml");
    let read = |text: &str| {
        std::fs::write(&file, format!("datasets: [a.jsonl]\n{text}\n")).unwrap();
        Options::resolve(Some(&file), toml::Table::new())
    };
    for (line, expected) in [
        ("default_system: Be brief.", "Use system"),
        ("adapter_name_or_path: a1", "`diagnose export ADAPTER --out DIR`"),
        ("assistant_only_loss: true", "For false use supervise = \"all\""),
        ("completion_only_loss: false", "For false use supervise = \"all\""),
        ("use_peft: true", "Use lora = true"),
        ("dataset_name: org/data", "Use datasets"),
        ("use_rslora: true", "alpha times the square root of r"),
        ("lora_target_linear: true", "Leave it out for true"),
        ("excess_length_strategy: drop", "for drop remove such rows from the data"),
        ("optim: adafactor", "any other would be a different training"),
        ("template: qwen", "chat-template names another file"),
        ("sample_packing: true", "a batch counts packs"),
        ("chat_template_jinja: a.jinja", "Use chat-template"),
        ("resume_from_checkpoint: true", "the same command resumes"),
        ("evals_per_epoch: 4", "Use eval-every"),
        ("model_type: LlamaForCausalLM", "the model's own files say"),
        ("tokenizer_config: org/other", "others would be a different training"),
        ("revision_of_model: 6299b5a", "model = \"ORG/NAME@REVISION\""),
        ("plugins: [a.CutCrossEntropyPlugin]", "others would be a different training"),
        ("sample_packing_sequentially: true", "a batch counts packs"),
        ("base_model_ignore_patterns: x", "unknown to this program"),
    ] {
        let error = read(line).unwrap_err().to_string();
        assert!(error.contains(expected), "{line}: {error}");
    }
    for line in [
        "neftune_noise_alpha: 5",
        "label_smoothing_factor: 0.1",
        "freeze_trainable_layers: 2",
        "pure_bf16: true",
        "loraplus_lr_ratio: 16.0",
        "use_dora: true",
        "load_in_4bit: true",
        "galore_rank: 16",
        "cosine_min_lr_ratio: 0.1",
        "rl: dpo",
        "reward_model: true",
        "pretraining_dataset: [a]",
        "model_config: {output_router_logits: true}",
    ] {
        let error = read(line).unwrap_err().to_string();
        assert!(error.contains("without it the training would differ") && !error.contains("eave it out"), "{line}: {error}");
        let off = line.split_once(':').unwrap().0;
        assert_eq!(read(&format!("{off}: false")).unwrap(), read("").unwrap(), "{off}");
    }
    // Every dump of Transformers' arguments has some of them at 0.
    for off in ["label_smoothing_factor: 0.0", "neftune_noise_alpha: 0", "moe_aux_loss_coef: 0.0", "cosine_min_lr_ratio: 0"] {
        assert_eq!(read(off).unwrap(), read("").unwrap(), "{off}");
    }
    assert!(read("galore_rank: 0").unwrap_err().to_string().contains("without it the training would differ"));
    // axolotl's spelling.
    let kwargs = read("chat_template_kwargs:\n  enable_thinking: false").unwrap().chat_template_kwargs;
    assert_eq!(kwargs.as_deref(), Some(r#"{"enable_thinking":false}"#));
    for line in ["logging_steps: 1", "report_to: none", "wandb_project: x", "ddp_timeout: 180000000", "flash_attention: true"] {
        let error = read(line).unwrap_err().to_string();
        assert!(error.contains("eave it out: it does not affect the result"), "{line}: {error}");
    }
    // The answer for an unknown name must not suggest leaving it out.
    let error = read("some_new_option: 3").unwrap_err().to_string();
    assert!(error.contains("some_new_option`: unknown to this program") && !error.contains("eave it out"), "{error}");
    assert_eq!(read("max_length: 512").unwrap().max_len, Some(512));
    assert_eq!(read("validation: [b]\nearly_stopping_steps: 3").unwrap().stop_after_worse, Some(3));
}

#[test]
fn values_of_other_programs_are_taken_or_answered() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("theirs.yaml");
    let read = |text: &str| {
        std::fs::write(&file, format!("datasets: [a.jsonl]\n{text}\n")).unwrap();
        Options::resolve(Some(&file), toml::Table::new())
    };
    let plain = read("").unwrap();
    assert_eq!(read("max_steps: -1").unwrap(), plain);
    assert_eq!(read("chat_template: tokenizer_default").unwrap(), plain);
    for targets in ["all", "all-linear", "[all-linear]"] {
        let options = read(&format!("lora: true\nlora_target_modules: {targets}")).unwrap();
        assert_eq!(options.lora().unwrap().targets, Vec::<String>::new(), "{targets}");
    }
    // Together with other names, PEFT and LLaMA-Factory take `all` as the name of a module.
    let both = read("lora: true\nlora_target: all,q_proj").unwrap();
    assert_eq!(both.lora().unwrap().targets, ["all", "q_proj"]);
    for (line, expected, cure) in [
        ("val_size: 4", "`val_size: 4` is a number of rows", "validation-share"),
        ("val_set_size: 1.0", "`val_set_size: 1.0` is a number of rows", "validation-share"),
        ("eval_steps: 0.25", "`eval_steps: 0.25` is a share of the run", "--dry-run"),
        ("save_steps: 0.25", "`save_steps: 0.25` is a share of the run", "--dry-run"),
        ("chat_template: chatml", "`chat_template: chatml` names a template of the other program", "Jinja file"),
        ("chat_template: jinja", "`chat_template: jinja` names", "Jinja file"),
        ("dtype: bfloat16", "`dtype: bfloat16`", "dtype = \"bf16\""),
        ("datasets:\n  - path: a.jsonl\n    type: chat_template", "`datasets`", "list of files"),
    ] {
        let text = if line.starts_with("datasets") { line.to_owned() } else { format!("datasets: [a.jsonl]\n{line}") };
        std::fs::write(&file, text).unwrap();
        let error = Options::resolve(Some(&file), toml::Table::new()).unwrap_err();
        let told = error.to_string();
        assert!(told.contains(expected) && told.contains(cure) && told.contains("theirs.yaml"), "{line}: {told}");
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

/// Rows above the length limit are truncated at the end, whichever program the limit's name comes from.
#[test]
fn what_other_programs_do_with_longer_rows_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("theirs.yaml");
    let remarks = |text: &str, typed: &str| {
        std::fs::write(&file, format!("datasets: [a.jsonl]\n{text}\n")).unwrap();
        Options::resolve_with_remarks(Some(&file), table(typed)).unwrap().1
    };
    for (line, expected) in [("sequence_len: 256", "axolotl drops"), ("cutoff_len: 256", "LLaMA-Factory cuts")] {
        let found = remarks(line, "");
        assert!(found.len() == 1 && found[0].contains(expected), "{found:?}");
        assert_eq!(remarks(line, "max-len = 512"), Vec::<String>::new());
    }
    assert_eq!(remarks("max_length: 256\nlearning_rate: 1.0e-4", ""), Vec::<String>::new());
    assert!(remarks("top_k: 50", "")[0].contains("sampling") && remarks("top-k: 50", "").is_empty());
}

/// PyYAML reads `2e-5` as a string, as YAML 1.1 requires, and trainers convert it to a number.
#[test]
fn numbers_in_quotes_are_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("theirs.yaml");
    let options = |text: &str| {
        std::fs::write(&file, format!("datasets: [a.jsonl]\n{text}\n")).unwrap();
        Options::resolve(Some(&file), toml::Table::new())
    };
    let read = options("learning_rate: \"2e-5\"\nnum_train_epochs: \"3\"\nbatch_size: '8'").unwrap();
    assert_eq!((read.learning_rate(), read.epochs, read.batch_size), (2e-5, 3.0, 8));
    let refused = options("batch_size: '8.5'").unwrap_err().to_string();
    assert!(refused.contains("batch-size: expected a whole number, found `8.5`"), "{refused}");
}

#[test]
fn what_is_for_adapters_is_refused_without_them() {
    for line in
        ["lora-r = 8", "lora-r = 16", "lora-alpha = 32.0", "lora-dropout = 0.1", "lora-targets = ['q_proj']", "merge = true"]
    {
        let resolved = |more: &str| Options::resolve(None, table(&format!("datasets = ['a']\n{line}\n{more}")));
        let error = resolved("").unwrap_err();
        assert!(error.to_string().contains("Give --lora, too") && error.exit_code() == 2, "{line}: {error}");
        resolved("lora = true").unwrap();
    }
    // Naming one is a request, also in a file that says nothing of adapters.
    let file = tempfile::tempdir().unwrap();
    let file = file.path().join("named.yaml");
    std::fs::write(&file, "datasets: a.jsonl\nlora_rank: 16\nlora_dropout: 0\n").unwrap();
    let refused = Options::resolve(Some(&file), toml::Table::new()).unwrap_err().to_string();
    assert!(refused.contains("is for low-rank adapters, but all weights are to be trained"), "{refused}");
    Options::resolve(Some(&file), table("lora = true")).unwrap();
    // The file that a run saves names every option.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("train.toml");
    let left = Options { datasets: vec!["a".to_owned()], ..Options::default() }.to_toml().unwrap();
    std::fs::write(&file, left).unwrap();
    Options::resolve(Some(&file), toml::Table::new()).unwrap();
}

#[test]
fn warm_up_is_a_share_or_steps() {
    let warmup = |text: &str| Options::resolve(None, table(&format!("datasets = ['a']\n{text}"))).unwrap().warmup(100);
    let found = ["", "warmup-ratio = 0.1", "warmup-steps = 0", "warmup-steps = 7", "warmup-steps = 0.25"].map(warmup);
    assert_eq!(found, [3, 10, 0, 7, 25]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("train.toml");
    let of_file = |text: &str, typed: &str| {
        std::fs::write(&file, format!("datasets = ['a']\n{text}")).unwrap();
        Options::resolve(Some(&file), table(typed))
    };
    let both =
        ["0", "7", "0.25"].map(|steps| of_file(&format!("warmup-ratio = 0.5\nwarmup-steps = {steps}"), "").unwrap().warmup(100));
    assert_eq!(both, [50, 7, 25]);
    // The default, too, is a ratio that was given.
    assert_eq!(of_file("warmup-ratio = 0.03\nwarmup-steps = 0", "").unwrap().warmup(100), 3);
    // The command line overrides the file's other name for the same thing; giving both on the command line is an error.
    assert_eq!(of_file("warmup-steps = 3", "warmup-ratio = 0.5").unwrap().warmup(100), 50);
    assert_eq!(of_file("warmup-ratio = 0.5", "warmup-steps = 3").unwrap().warmup(100), 3);
    let options = of_file("max-steps = 10", "epochs = 5.0").unwrap();
    assert_eq!((options.max_steps, options.epochs), (None, 5.0));
    assert_eq!(of_file("epochs = 5.0", "max-steps = 10").unwrap().max_steps, Some(10));
    let refused = of_file("", "epochs = 5.0\nmax-steps = 10").unwrap_err().to_string();
    assert!(refused.contains("--epochs and --max-steps were both given"), "{refused}");
    assert_eq!([warmup("schedule = 'constant'"), warmup("schedule = 'constant_with_warmup'")], [0, 3]);
    let refused = Options::resolve(None, table("datasets = ['a']\nschedule = 'constant'\nwarmup-steps = 5")).unwrap_err();
    assert!(refused.to_string().contains("constant-with-warmup"), "{refused}");
    let refused = of_file("schedule = 'constant'\nwarmup-ratio = 0.03", "").unwrap_err();
    assert!(refused.to_string().contains("constant-with-warmup"), "{refused}");
    assert_eq!(warmup("schedule = 'constant'\nwarmup-ratio = 0.0"), 0);
}

#[test]
fn the_defaults_are_those_of_adamw() {
    let AdamWOptions { beta1, beta2, eps, weight_decay, .. } = AdamWOptions::default();
    let options = Options::default();
    assert_eq!((options.beta1, options.beta2, options.eps, options.weight_decay), (beta1, beta2, eps, weight_decay));
}

#[test]
fn broken_files_are_refused_with_their_name() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text, expected) in [
        ("a.toml", "datasets = [", "not TOML"),
        ("a.yaml", "datasets: [a\nmethod: sft", "not a YAML mapping"),
        ("b.yaml", "- a.jsonl", "not a YAML mapping"),
        ("c.yaml", "datasets: [a.jsonl]\nbatch_size: many", "wrong option: batch-size: "),
    ] {
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        let error = Options::resolve(Some(&file), toml::Table::new()).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(expected) && message.contains(name) && error.exit_code() == 2, "{message}");
    }
}

#[test]
fn wrong_options_are_refused_by_name() {
    for (text, expected) in [
        ("datasets = []", "no data"),
        ("learning-speed = 1", "learning-speed"),
        ("epochs = 0", "--epochs 0"),
        ("warmup-steps = 1.5", "--warmup-steps 1.5"),
        ("batch-size = 0", "batch-size"),
        ("batch-size = 'many'", "invalid type"),
        ("method = 'magic'", "magic"),
        ("method = 'sft'\ngate = 'power:2'", "--gate"),
        ("method = 'mask'\ngate = 'mask:0.3'", "--method eaft"),
        ("method = 'dft'\nnormaliser = 'none'", "--normaliser none"),
        ("method = 'pilot'\ntop-k = 50", "--top-k 50"),
        ("top-k = 1", "--top-k 1"),
        ("gate = 'axolotl'\nnormaliser = 'ln-k'", "--gate axolotl"),
        ("gate = 'llama-factory'\nnormaliser = 'none'", "--gate linear --normaliser none"),
        ("gate = 'llama-factory'\ntop-k = 50", "--gate linear --normaliser 3.0 --top-k 50"),
        ("gate = 'power:x'", "power"),
        ("kl-weight = 0.5", "kl-weight"),
        ("method = 'sft'\nintended = ['edits.jsonl']", "--intended"),
        ("validation-share = 1.0", "validation-share"),
        ("validation-share = 0.1\nvalidation = ['b']", "use only one of them"),
        ("keep = 'best'", "--keep best uses the loss on held-out rows"),
        ("stop-after-worse = 2", "--validation FILE"),
        ("validation = ['b']\nstop-after-worse = 0", "--stop-after-worse 0"),
        ("validation = ['b']\nkeep = 'first'", "Known are last, best."),
        ("lr = -1.0", "lr"),
        ("snapshot-every = 4", "--snapshot-every is for psft"),
        ("method = 'psft'\nsnapshot-every = 0", "--snapshot-every 0"),
        ("method = 'psft'\nlora = true\nlora-dropout = 0.1", "--lora-dropout 0.1"),
        ("dtype = 'f16'", "Known are f32, bf16, bf16x3."),
        ("moments = 'bf16x3'", "Known are f32, bf16."),
        ("save-dtype = 'f64'", "save-dtype: expected a number format, found `f64`"),
        ("format = 'chatml'", "Known are messages, sharegpt"),
        ("supervise = 'first'", "Known are assistant, last, all."),
        ("normaliser = '3'", "Known are ln-k, 3.0, none."),
        ("schedule = 'linaer'", "Did you mean linear?"),
        ("max-steps = 0", "max-steps"),
        ("sample = 0", "--sample 0"),
        ("limit = 5\nsample = 5", "use only one of them"),
    ] {
        let text = if text.starts_with("datasets") { text.to_owned() } else { format!("datasets = ['a']\n{text}") };
        let error = Options::resolve(None, table(&text)).unwrap_err();
        assert!(error.to_string().contains(expected) && error.exit_code() == 2, "{text}: {error}");
    }
}

/// A run resumes from the file of an earlier version of the program: names, values and their order are part of its identity.
#[test]
fn the_file_of_an_earlier_run_is_read_and_written_again_to_the_letter() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("train.toml");
    let left = r#"datasets = ["a.jsonl", "b.csv"]
dtype = "bf16x3"
method = "eaft"
gate = "power:2"
normaliser = "3.0"
top-k = 20
intended = ["edits.jsonl"]
lora = true
lora-r = 8
merge = false
epochs = 2.0
batch-size = 4
validation-share = 0.05
validation = []
keep = "best"
stop-after-worse = 3
max-len = 512
seed = 7
lora-dropout = 0.0
lora-targets = ["q_proj"]
schedule = "constant-with-warmup"
warmup-ratio = 0.03
beta1 = 0.9
beta2 = 0.999
eps = 0.00000001
weight-decay = 0.0
moments = "bf16"
clip = 1.0
pack-tokens = 2048
save-dtype = "bf16"
keep-checkpoints = 1
format = "prompt-completion"
map = []
role = []
strict = false
append-eos = false
supervise = "last"

[mix]
"a.jsonl" = 0.5
"#;
    std::fs::write(&file, left).unwrap();
    let options = Options::resolve(Some(&file), toml::Table::new()).unwrap();
    assert_eq!((options.dtype, options.moments, options.save_dtype), (Dtype::Bf16x3, Some(Stored::Bf16), Stored::Bf16));
    assert_eq!((options.format, options.supervise), (Some(Format::PromptCompletion), Supervise::Last));
    assert_eq!(options.to_toml().unwrap(), left);
    // run.json of a training run also holds them.
    let record = serde_json::to_value(&options).unwrap();
    assert_eq!([&record["dtype"], &record["moments"], &record["keep"]], ["bf16x3", "bf16", "best"]);
    assert_eq!(serde_json::from_value::<Options>(record).unwrap(), options);
}

/// Every numeric training option rejects meaningless values and names the option, on the command line and in files.
#[test]
fn numbers_out_of_range_are_refused_by_name() {
    /// Extreme values that are valid: 0 turns something off, and a bound may be too large to ever be reached.
    const MEANS: &[(&str, &[&str])] = &[
        // Rejected once the schedule is known, with the number of steps that would change nothing.
        ("lr", &["0"]),
        ("clip", &["0", "1e30"]),
        ("seed", &["0"]),
        // Keeps nothing and recomputes everything.
        ("activation-memory", &["0"]),
        ("mix", &["0"]),
        ("validation-share", &["0"]),
        ("warmup-steps", &["0"]),
        ("warmup-ratio", &["0"]),
        ("weight-decay", &["0"]),
        ("kl-weight", &["0"]),
        ("lora-dropout", &["0"]),
        ("beta1", &["0"]),
        ("beta2", &["0"]),
        ("eps", &["0"]),
    ];
    let numbers = |declared: &&Declared| matches!(declared.kind, ValueKind::Number | ValueKind::Whole | ValueKind::Numbers);
    let mut n = 0;
    for declared in DECLARED.iter().filter(numbers) {
        let name = declared.name();
        let needs = match name.as_str() {
            "lora-r" | "lora-alpha" | "lora-dropout" => "lora = true",
            "kl-weight" => "method = 'sft-kl'",
            "snapshot-every" => "method = 'psft'",
            "stop-after-worse" => "validation = ['b']",
            _ => "",
        };
        let plain = format!("datasets = ['a']\n{needs}\n");
        let (values, of): (&[&str], _) = match declared.kind {
            ValueKind::Whole => (&["nan", "inf", "-inf", "-1", "1.5", "1e30", "99999999999999999999", "0"], ""),
            ValueKind::Numbers => (&["nan", "inf", "-inf", "-1", "0", "1e30"], "a="),
            _ => (&["nan", "inf", "-inf", "-1", "0", "1e30"], ""),
        };
        n += 1;
        for value in values {
            let typed = declared.value(&format!("{of}{value}")).and_then(|value| {
                let mut table = table(&plain);
                table.insert(name.clone(), value);
                Options::resolve(None, table)
            });
            let line = if of.is_empty() { format!("{name} = {value}") } else { format!("{name} = {{ a = {value} }}") };
            // TOML itself rejects what it cannot parse, and names the position in the file.
            let filed = format!("{plain}{line}").parse::<toml::Table>().ok().map(|table| Options::resolve(None, table));
            for resolved in filed.into_iter().chain([typed]) {
                let means = MEANS.iter().any(|(known, values)| *known == name && values.contains(value));
                match resolved {
                    Ok(_) => assert!(means, "{name} {value} was taken"),
                    Err(error) => assert!(!means && error.to_string().contains(&name), "{name} {value}: {error}"),
                }
            }
        }
    }
    assert!(n > 25, "{n} options are numbers");
}
