//! The prompts, byte for byte and id for id, against the facts beside the checkout.

use oqvl_mlm_filter::{Metric, PromptStyle};
use oqvl_testkit::shared_data;
use oqvl_text_prep::Tokenizer;

/// What stands between two marks, the first of its kind after `after`.
fn between<'a>(text: &'a str, after: &str, open: &str, close: &str) -> &'a str {
    let rest = &text[text.find(after).unwrap() + after.len()..];
    let rest = &rest[rest.find(open).unwrap() + open.len()..];
    &rest[..rest.find(close).unwrap()]
}

/// Section 8.2 of the facts: the template, the four criteria, and the chat around them.
#[test]
fn prompts_are_those_of_the_v2_script() {
    let Some(data) = shared_data() else { return };
    let Ok(facts) = std::fs::read_to_string(data.join("../spec/data.md")) else {
        eprintln!("skipped: there are no facts beside the data");
        return;
    };
    let section = &facts[facts.find("### 8.2 Prompt").unwrap()..];
    let template = between(section, "newline + template:", "```\n", "\n```");
    let chat = between(section, "the next `<|im_start|>`):", "```\n", "\n```");
    let caption = "Ein “rotes” Haus,\n 2 Türen";
    for metric in Metric::ALL {
        let item = format!("* `{}`", metric.name());
        let criteria = match metric {
            Metric::SemanticUnderstanding => between(section, &item, "```\n", "\n```"),
            _ => between(section, &item, ": `", "`\n"),
        };
        let text = template
            .replace("{caption}", caption)
            .replace("{criteria}", criteria)
            .replace("{aspect}", &metric.name().replace('_', " "));
        // The header of the answer ends with a newline, and then a blank is added.
        let expected = format!("{}\n ", chat.replace("{text}", &text));
        assert_eq!(PromptStyle::Reference.text(metric, caption), expected);
    }
}

#[test]
fn the_blank_at_the_end_is_one_token() {
    const BLANK: i64 = 220;
    let Some(data) = shared_data() else { return };
    let tokenizer = Tokenizer::from_file(data.join("tokenizers/qwen2.5/tokenizer.json")).unwrap();
    for metric in Metric::ALL {
        let ids = PromptStyle::Reference.input_ids(&tokenizer, metric, "a cat").unwrap();
        assert_eq!(ids.last(), Some(&BLANK));
        assert_eq!(PromptStyle::Reference.parity_input_ids(&tokenizer, metric, "a cat").unwrap(), ids);
        // What is too long is cut before the blank is added.
        let long = "cat ".repeat(3000);
        let cut = PromptStyle::Reference.parity_input_ids(&tokenizer, metric, &long).unwrap();
        assert_eq!((cut.len(), cut.last()), (2041, Some(&BLANK)));
        let whole = PromptStyle::Reference.input_ids(&tokenizer, metric, &long).unwrap();
        assert_eq!(cut[..2040], whole[..2040]);
    }
}
