//! Greedy generation, token by token.

use crate::fixture::Fixture;
use crate::row::{Equal, Row};
use anyhow::Context as _;
use oqvl_model::{GenerateConfig, Prompt, Vlm};

/// Continues the prompts of a fixture with the cache, all at once and one by one, and without it.
pub(super) fn rows(fixture: &Fixture, vlm: &Vlm, prompts: &[Prompt]) -> anyhow::Result<Vec<Row>> {
    let expected = fixture.ints("greedy")?;
    let steps = expected.len() / prompts.len();
    let config = GenerateConfig { max_new_tokens: steps, ..GenerateConfig::default() };
    let together = vlm.generate(prompts, &config)?;
    let mut alone = Vec::new();
    for prompt in prompts {
        alone.extend(vlm.generate(std::slice::from_ref(prompt), &config)?);
    }
    let row = |what: String, found: &[Vec<i64>]| {
        fixture.place.sequence("f32", &what, Equal::of(&found.concat(), &expected))
    };
    Ok(vec![
        row(format!("{steps} greedy tokens, batch"), &together),
        row(format!("{steps} greedy tokens, alone"), &alone),
        row(format!("{steps} greedy tokens, no cache"), &without_cache(vlm, prompts, steps)?),
    ])
}

/// Every token from a pass over everything before it.
fn without_cache(vlm: &Vlm, prompts: &[Prompt], steps: usize) -> anyhow::Result<Vec<Vec<i64>>> {
    let mut growing = prompts.to_vec();
    for _ in 0..steps {
        let logits = vlm.next_token_logits(&growing)?;
        for (prompt, logits) in growing.iter_mut().zip(logits) {
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
            prompt.input_ids.push(best.context("an empty vocabulary")? as i64);
        }
    }
    Ok(growing
        .iter()
        .zip(prompts)
        .map(|(grown, old)| grown.input_ids[old.input_ids.len()..].to_vec())
        .collect())
}
