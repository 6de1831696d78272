//! Tables and cards.

use super::*;

#[test]
fn tables_align_numbers_and_escape_text() {
    let table =
        Table::new(&["run", "acc %"]).row(&["<b>".into(), "9.5".into()]).row(&["long name".into(), "41.0".into()]);
    assert_eq!(table.to_string(), "run        acc %\n<b>          9.5\nlong name   41.0\n");
    let html = table.html();
    assert!(html.contains("&lt;b&gt;") && !html.contains("<b>"));
    assert!(html.contains("text-align:right"));
    let rows = history("a", 2).table().to_string();
    assert!(rows.lines().count() == 3 && rows.contains("val accuracy (%)"), "{rows}");
}

#[test]
fn a_model_card_says_what_it_is_how_good_and_within_which_limits() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path());
    let build = |vs: &tch::nn::Path| {
        crate::models::Layers::new()
            .add("mean", crate::models::Op::GlobalAvgPool)
            .add("fc", tch::nn::linear(vs / "fc", 3, 10, Default::default()))
    };
    let model = crate::models::Model::new("my_net", tch::Device::Cpu, 0, &build).unwrap();
    let transform = data::Transform::imagenet(16);
    let card = ModelCard {
        classes: data.classes.clone(),
        stored_size: 32,
        framing: data.framing,
        transform,
        threshold: 0.625,
    };
    // Of 20 test images, those of class 0 and 2 are taken for class 1.
    let labels = data.test.labels().unwrap();
    let said = labels.masked_fill(&labels.eq(0), 1).masked_fill(&labels.eq(2), 1);
    let test = Evaluation::new(&(said.one_hot(10).to_kind(Kind::Float) * 9.0), &labels).unwrap();
    let history = History { stopped: Some("out | of time".into()), epochs: 5, ..history("kd", 3) };
    let file = folder.path().join("net.onnx");
    std::fs::write(&file, "abc").unwrap();
    let files = [file];
    let text = CardText {
        model: &model,
        card: &card,
        data: &data,
        history: &history,
        test: &test,
        sweep: None,
        files: &files,
    };
    let path = folder.path().join("cards/README.md");
    text.save(&path).unwrap();
    let found = std::fs::read_to_string(&path).unwrap();
    for part in [
        "# my\\_net\n\nA network that tells 10 classes apart: airplane, automobile, ",
        "squeezed into a square of 32 pixels,\n  then brought to 16 x 16 pixels",
        "- Cost: 40 parameters, 0.0 million multiply-adds",
        "Below a probability of 62.5 %",
        "\n## Data\n\nCIFAR-10: 10 classes",
        "- Kept: the weights of epoch 3, the best on the validation split, with T 4, alpha 0.9, learning rate 1e-3\n",
        "- Optimizer: Adam at a constant learning rate\n",
        "- Length: 3 of 5 epochs in 5 s on 2 threads, 1 from epoch 1.50, stopped: out \\| of time\n", // 4.5 s
        "| 20 | 80.0 | 58.4 to 91.9 | ",
        "| airplane | 2 | 0.0 | 0.0 to 65.8 |\n| automobile | 2 | 100.0 | 34.2 to 100.0 |\n",
        "learned from another network",
        "| `net.onnx` | 3 | `ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad` |\n",
    ] {
        assert!(found.contains(part), "{part} is missing in\n{found}");
    }
    assert!(found.lines().all(|line| line.len() < 200), "{found}");
    let absent = [folder.path().join("absent.pt")];
    refused(CardText { files: &absent, ..text }.save(&path), "absent.pt");
}

#[test]
fn students_are_shown_with_what_they_cost() {
    let text = student_sizes(10).unwrap().to_string();
    let row = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{text}"));
    assert_eq!(text.lines().count(), 10);
    for part in ["32", "0.26 M", "1.1 MB", "96.1 M"] {
        assert!(row("Student::Medium").contains(part), "{part} is missing in\n{text}");
    }
    assert!(row("Student::Small").contains("0.07 M"), "{text}");
    refused(student_sizes(0), "students for 0 classes");
}

#[test]
fn quick_checks_ask_three_questions_and_say_a_word_on_each_answer() {
    for notebook in 0..15 {
        let checks = quick_checks(notebook).unwrap();
        for question in 1..=3 {
            let said: Vec<String> = ['a', 'b', 'c'].map(|answer| checks.answer(question, answer).unwrap()).into();
            assert_eq!(said.iter().filter(|said| said.starts_with("Right. ")).count(), 1, "{said:?}");
            assert_eq!(said.iter().filter(|said| said.starts_with("Not quite. ")).count(), 2, "{said:?}");
            assert!(said.iter().all(|said| said.len() > 20), "{said:?}");
        }
        refused(checks.answer(4, 'a'), "no answer 'a' to question 4; questions are 1 to 3");
        refused(checks.answer(0, 'a'), "to question 0");
        refused(checks.answer(1, 'd'), "no answer 'd'");
    }
    refused(quick_checks(15), "notebook 15 has no quick checks; the course has 0 to 14");
}
