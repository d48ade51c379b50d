//! Qwen2 alone.

use super::{Outputs, store};
use crate::fixture::Fixture;
use crate::row::Row;
use candle_core::{DType, Device, Tensor};
use oqvl_model::{Example, Missing, Network, Prompt, Qwen2, Qwen2Config, Vlm, VlmConfig, drop_tied_head};
use serde_json::{Value, json};

pub(super) fn outputs(fixture: &Fixture, dtype: DType) -> anyhow::Result<Outputs> {
    let config = fixture.config::<Qwen2Config>()?;
    let mut weights = fixture.weights(Network::Qwen2)?;
    if config.tie_word_embeddings {
        drop_tied_head(&mut weights, "")?;
    }
    let mut store = store(weights, Missing::Refuse, dtype);
    let qwen2 = Qwen2::new(&config, store.root())?;
    store.finish()?;

    // Padded on the right, as the assembled model does it; only real positions are compared.
    let rows = fixture.ragged("input_ids")?;
    let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
    let pads = |row: &Vec<i64>| std::iter::repeat_n(0, longest - row.len());
    let ids: Vec<u32> = rows
        .iter()
        .flat_map(|row| row.iter().map(|id| *id as u32).chain(pads(row).map(|id| id as u32)))
        .collect();
    let embeds = qwen2.embed(&Tensor::from_vec(ids, rows.len() * longest, &Device::Cpu)?)?;
    let hidden = qwen2.forward(&embeds.reshape((rows.len(), longest, config.hidden_size))?)?;
    let real: Vec<u32> = rows
        .iter()
        .enumerate()
        .flat_map(|(index, row)| (0..row.len()).map(move |at| (index * longest + at) as u32))
        .collect();
    let shown: Vec<u32> = match fixture.has("shown") {
        true => fixture.ints("shown")?.into_iter().map(|at| real[at as usize]).collect(),
        false => real,
    };
    let shown = Tensor::new(shown, &Device::Cpu)?;
    let hidden = hidden.reshape((rows.len() * longest, config.hidden_size))?.index_select(&shown, 0)?;
    let mut outputs = vec![("logits", qwen2.logits(&hidden)?), ("hidden_states", hidden)];
    if dtype == DType::F32 {
        let (vlm, prompts) = with_an_unused_tower(fixture)?;
        let labelled = |prompt: Prompt| Example { labels: prompt.input_ids.clone(), prompt };
        let examples: Vec<Example> = prompts.into_iter().map(labelled).collect();
        outputs.push(("loss", vlm.loss(&examples.iter().collect::<Vec<_>>())?.loss.reshape(1)?));
    }
    Ok(outputs)
}

pub(super) fn greedy(fixture: &Fixture) -> anyhow::Result<Vec<Row>> {
    let (vlm, prompts) = with_an_unused_tower(fixture)?;
    super::greedy::rows(fixture, &vlm, &prompts)
}

/// Loss and generation are the assembled model's: it gets a tower that no prompt needs.
fn with_an_unused_tower(fixture: &Fixture) -> anyhow::Result<(Vlm, Vec<Prompt>)> {
    let vision_config = json!({
        "hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": 2, "num_attention_heads": 1, "image_size": 2,
        "patch_size": 2, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
    });
    let text_config = fixture.config::<Value>()?;
    let config: VlmConfig = serde_json::from_value(
        json!({"vision_config": vision_config, "text_config": text_config, "pooled_grid": 1}),
    )?;
    let weights = fixture.weights(Network::Qwen2)?;
    let weights = weights.into_iter().map(|(name, tensor)| (format!("language_model.{name}"), tensor));
    let prefixes = ["vision_tower.", "projector."].map(str::to_owned).to_vec();
    let mut store = store(weights.collect(), Missing::Draw { seed: 1, prefixes }, DType::F32);
    let vlm = Vlm::new(&config, store.root(), &Device::Cpu)?;
    store.finish()?;
    let prompts = fixture.ragged("input_ids")?.into_iter();
    Ok((vlm, prompts.map(|input_ids| Prompt { input_ids, images: Vec::new() }).collect()))
}
