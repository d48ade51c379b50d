//! The assembled model.

use super::{Outputs, store};
use crate::fixture::Fixture;
use crate::row::Row;
use anyhow::ensure;
use candle_core::{DType, Device, Tensor};
use oqvl_model::{Example, Missing, Network, Prompt, Vlm, VlmConfig, drop_tied_head};
use oqvl_text_prep::IMAGE_TOKEN_ID;

pub(super) fn outputs(fixture: &Fixture, dtype: DType) -> anyhow::Result<Outputs> {
    let vlm = open(fixture, dtype)?;
    let images = pictures(fixture)?;
    let slices: Vec<&[f32]> = images.iter().map(Vec::as_slice).collect();
    let prompts = prompts(fixture)?;
    let logits = vlm.next_token_logits(&prompts)?;
    let shape = (logits.len(), logits.first().map_or(0, Vec::len));
    let mut outputs = vec![
        ("image_embeds", vlm.encode_images(&slices)?),
        ("last_logits", Tensor::from_vec(logits.concat(), shape, &Device::Cpu)?),
    ];
    if dtype == DType::F32 {
        let labels = fixture.ragged("labels")?;
        let pairs = prompts.into_iter().zip(labels);
        let examples: Vec<Example> = pairs.map(|(prompt, labels)| Example { prompt, labels }).collect();
        outputs.push(("loss", vlm.loss(&examples.iter().collect::<Vec<_>>())?.loss.reshape(1)?));
    }
    Ok(outputs)
}

pub(super) fn greedy(fixture: &Fixture) -> anyhow::Result<Vec<Row>> {
    super::greedy::rows(fixture, &open(fixture, DType::F32)?, &prompts(fixture)?)
}

fn open(fixture: &Fixture, dtype: DType) -> anyhow::Result<Vlm> {
    let config = fixture.config::<VlmConfig>()?;
    let mut weights = fixture.weights(Network::Vlm)?;
    if config.text_config.tie_word_embeddings {
        drop_tied_head(&mut weights, "language_model.")?;
    }
    let mut store = store(weights, Missing::Refuse, dtype);
    let vlm = Vlm::new(&config, store.root(), &Device::Cpu)?;
    store.finish()?;
    Ok(vlm)
}

fn pictures(fixture: &Fixture) -> anyhow::Result<Vec<Vec<f32>>> {
    Ok(fixture.golden("pixel_values")?.flatten_from(1)?.to_vec2()?)
}

/// The rows with the images that their placeholders stand for.
fn prompts(fixture: &Fixture) -> anyhow::Result<Vec<Prompt>> {
    let pictures = pictures(fixture)?;
    let mut places = fixture.ints("images")?.into_iter();
    let mut prompts = Vec::new();
    for input_ids in fixture.ragged("input_ids")? {
        let num_images = input_ids.iter().filter(|id| **id == IMAGE_TOKEN_ID).count();
        let images = places
            .by_ref()
            .take(num_images)
            .filter_map(|at| Some(pictures.get(at as usize)?.as_slice().into()));
        let prompt = Prompt { input_ids, images: images.collect() };
        ensure!(prompt.images.len() == num_images, "an image that is not there");
        prompts.push(prompt);
    }
    Ok(prompts)
}
