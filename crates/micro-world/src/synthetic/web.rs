//! The web pool on disk: URLs, the truth about them, and everything the server needs.

use super::pool::{HOSTS, PlannedUrl, Redirect, plan};
use super::{CHUNK, region};
use crate::config::SyntheticConfig;
use crate::encode::{picture_that_claims, tiny_picture, web_page};
use crate::error::WorldError;
use crate::records::{Answer, BodyRef, Delivery, Fault, Route};
use crate::report::{WorldReport, count};
use crate::scene::draw;
use crate::world_dir::{ShardSet, WorldDir, write_jsonl};
use oqvl_stage::{Progress, RunContext, stream};
use rand::Rng as _;
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

/// Bodies per shard of `images/`.
const BODIES_PER_SHARD: usize = 2000;
/// Width and height that a picture of [`Fault::HugeDimensions`] claims.
const CLAIMED_SIDE: u32 = 60_000;

/// Writes `urls.jsonl`, `truth.jsonl`, `routes.jsonl` and `images/`.
pub(super) fn write(
    config: &SyntheticConfig,
    run: &RunContext,
    world: &WorldDir,
    progress: &Progress,
    report: &mut WorldReport,
) -> Result<(), WorldError> {
    let plan = plan(config, run.seed);
    let mut bodies = ShardSet::new(world.create_dir("images")?, BODIES_PER_SHARD);
    let mut places: Vec<Option<BodyRef>> = Vec::with_capacity(plan.len());
    for chunk in plan.chunks(CHUNK) {
        run.check_interrupt()?;
        let files: Vec<Option<Vec<u8>>> = chunk.par_iter().map(body).collect();
        for (url, file) in chunk.iter().zip(files) {
            places.push(file.map(|bytes| bodies.push_body(extension(url), bytes)).transpose()?);
        }
        progress.inc(chunk.len() as u64);
    }
    bodies.finish()?;

    let truth: Vec<_> = plan.iter().map(|url| url.truth_record(&plan)).collect();
    report.count_truth(&truth);
    (plan.iter().zip(&places)).filter(|(_, place)| place.is_some()).for_each(|(url, _)| {
        count(&mut report.formats, extension(url));
    });
    let routes = plan.iter().enumerate().flat_map(|(index, url)| {
        let place = places[url.duplicate_of.unwrap_or(index)].clone();
        routes(url, place, run.seed)
    });
    write_jsonl(&world.routes(), routes)?;
    write_jsonl(&world.truth(), &truth)?;
    write_jsonl(&world.urls(), plan.iter().map(PlannedUrl::url_record))
}

fn extension(url: &PlannedUrl) -> &'static str {
    match url.fault {
        Some(Fault::NotAnImage) => "html",
        Some(Fault::Tiny | Fault::HugeDimensions) => "png",
        _ => url.format.extension(),
    }
}

/// What the URL serves, if it serves anything of its own.
fn body(url: &PlannedUrl) -> Option<Vec<u8>> {
    match url.fault {
        Some(Fault::NotFound | Fault::Gone | Fault::RedirectLoop | Fault::DuplicateContent) => None,
        Some(Fault::NotAnImage) => Some(web_page(url.source.index)),
        Some(Fault::Tiny) => Some(tiny_picture(1 + (url.source.index % 2) as u32)),
        Some(Fault::HugeDimensions) => Some(picture_that_claims(CLAIMED_SIDE)),
        _ => Some(url.format.encode(&draw(&url.source.scene(), url.canvas))),
    }
}

/// The routes of a URL: one, or two where it redirects.
fn routes(url: &PlannedUrl, place: Option<BodyRef>, seed: u64) -> Vec<Route> {
    let route = |target: String, answer| Route { host: url.host.to_owned(), target, answer };
    let there = format!("/moved{}", url.target);
    let redirect = |location: String| Answer::Redirect { location };
    let Some(body) = place else {
        return match url.fault {
            Some(Fault::Gone) => vec![route(url.target.clone(), Answer::Status { status: 410 })],
            Some(Fault::RedirectLoop) => vec![
                route(url.target.clone(), redirect(there.clone())),
                route(there, redirect(url.target.clone())),
            ],
            _ => vec![route(url.target.clone(), Answer::Status { status: 404 })],
        };
    };
    let answer = answer_with(url, body, seed);
    match url.redirect {
        Redirect::Direct => vec![route(url.target.clone(), answer)],
        Redirect::Once => {
            // To another host: a redirect that only follows paths would get lost.
            let next =
                HOSTS.iter().position(|host| *host == url.host).map_or(0, |index| (index + 1) % HOSTS.len());
            vec![
                route(url.target.clone(), redirect(format!("http://{}{there}", HOSTS[next]))),
                Route { host: HOSTS[next].to_owned(), target: there, answer },
            ]
        }
    }
}

fn answer_with(url: &PlannedUrl, body: BodyRef, seed: u64) -> Answer {
    let mut rng = stream(seed, "micro-world/answer", 0, 0, url.source.index - region(0));
    let delivery = match url.fault {
        Some(Fault::ServerErrorThenFine) => Delivery::AfterErrors { num_failures: rng.random_range(1..=2) },
        Some(Fault::Slow) => Delivery::Slow { milliseconds: rng.random_range(800..1200) },
        Some(Fault::Hanging) if rng.random_bool(0.5) => Delivery::Silent,
        Some(Fault::Hanging) => Delivery::Stalled,
        Some(Fault::Truncated) => Delivery::Truncated,
        _ => Delivery::Plain,
    };
    let content_type = match url.fault {
        Some(Fault::WrongContentType) => "text/html; charset=utf-8",
        Some(Fault::NotAnImage) => "image/jpeg",
        Some(Fault::Tiny | Fault::HugeDimensions) => "image/png",
        _ => url.format.content_type(),
    };
    let robots_tag = (url.fault == Some(Fault::OptOut))
        .then(|| if rng.random_bool(0.5) { "noai".to_owned() } else { "noai, noimageai".to_owned() });
    Answer::Body { body, content_type: content_type.to_owned(), delivery, robots_tag }
}
