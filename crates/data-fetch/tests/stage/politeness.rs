//! Caps, pauses and deadlines.

use crate::server::{Delivery, Reply};
use crate::world::{World, jpeg};
use std::time::{Duration, Instant};

fn urls(host: &str, count: usize) -> Vec<String> {
    (0..count).map(|idx| format!("http://{host}/{idx}")).collect()
}

#[test]
fn both_caps_hold_at_the_server() {
    let image = jpeg(20, 20, 1);
    let list = [urls("a.test", 30), urls("b.test", 30), urls("c.test", 30)].concat();
    let mut world =
        World::new(&list, move |_| Reply::ok(&image).delivered(Delivery::Late(Duration::from_millis(20))));
    world.config.in_flight = 7;
    world.config.per_host_in_flight = 3;
    assert_eq!(world.run().tally.kept, 90);
    let (all, per_host) = world.server.most_open();
    assert!(all <= 7 && per_host <= 3, "{all} in all, {per_host} at one host");
    assert!(all >= 4 && per_host >= 2, "{all} in all, {per_host} at one host");
}

#[test]
fn a_slow_host_does_not_hold_up_the_others() {
    let image = jpeg(20, 20, 1);
    // All the slow URLs come first in the list.
    let list = [urls("a.test", 40), urls("b.test", 40)].concat();
    let mut world = World::new(&list, move |request| match request.host.as_str() {
        "a.test" => Reply::ok(&image).delivered(Delivery::Late(Duration::from_millis(50))),
        _ => Reply::ok(&image),
    });
    world.config.per_host_in_flight = 2;
    world.config.in_flight = 4;
    let report = world.run();
    assert_eq!(report.tally.kept, 80);
    let requests = world.server.requests();
    let arrivals = |host: &str| -> Vec<Instant> {
        requests.iter().filter(|request| request.host == host).map(|request| request.arrived).collect()
    };
    // 40 answers of 50 ms, two at a time, take a second; the quick ones are through long before.
    let (slow, quick) = (arrivals("a.test"), arrivals("b.test"));
    assert!(quick[39] + Duration::from_millis(300) < slow[39]);
}

#[test]
fn retry_after_pauses_the_whole_host() {
    let image = jpeg(20, 20, 1);
    let mut world = World::new(&urls("a.test", 5), move |request| {
        let is_first = request.path == "/0" && request.num_earlier == 0;
        if is_first { Reply::status(429).header("Retry-After", "1") } else { Reply::ok(&image) }
    });
    world.config.per_host_in_flight = 1;
    let report = world.run();
    assert_eq!((report.tally.kept, world.num_retries()), (5, 1));
    let requests = world.server.requests();
    let refused = requests.iter().position(|request| request.path == "/0").unwrap();
    assert!(requests[refused + 1].arrived - requests[refused].arrived >= Duration::from_millis(990));
}

#[test]
fn a_host_that_wants_a_long_pause_is_given_up_without_further_requests() {
    let mut world = World::new(&urls("a.test", 50), |_| Reply::status(429).header("Retry-After", "86400"));
    world.config.per_host_in_flight = 2;
    let started = Instant::now();
    let report = world.run();
    assert!(started.elapsed() < Duration::from_secs(3));
    assert_eq!(report.tally.rejected["rate-limited"], 50);
    assert!(world.server.requests().len() <= 2);
}

#[test]
fn an_endless_body_costs_one_deadline() {
    let image = jpeg(20, 20, 1);
    let mut world = World::new(&urls("a.test", 6), move |_| Reply::ok(&image).delivered(Delivery::Stalled));
    world.config.deadline_seconds = 0.3;
    let started = Instant::now();
    assert_eq!(world.run().tally.rejected["timeout"], 6);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[test]
fn a_silent_server_is_asked_again_before_the_deadline() {
    let image = jpeg(20, 20, 1);
    let mut world = World::new(&urls("a.test", 2), move |request| {
        let reply = Reply::ok(&image);
        if request.path == "/0" || request.num_earlier == 0 {
            reply.delivered(Delivery::Stalled)
        } else {
            reply
        }
    });
    world.config.timeout = 0.1;
    let report = world.run();
    assert_eq!((report.tally.kept, report.tally.rejected["timeout"]), (1, 1));
    assert_eq!(world.server.num_requests("a.test", "/0"), 3);
    assert_eq!(world.server.num_requests("a.test", "/1"), 2);
}

#[test]
fn requests_per_second_are_limited_at_each_host() {
    let image = jpeg(20, 20, 1);
    let list = [urls("a.test", 25), urls("b.test", 25)].concat();
    let mut world = World::new(&list, move |_| Reply::ok(&image));
    world.config.per_host_requests_per_second = Some(20.0);
    assert_eq!(world.run().tally.kept, 50);
    let requests = world.server.requests();
    for host in ["a.test", "b.test"] {
        let times: Vec<_> =
            requests.iter().filter(|request| request.host == host).map(|request| request.arrived).collect();
        // Twenty may come at once, the other five 50 ms apart.
        assert!(times[24] - times[0] >= Duration::from_millis(200), "{host}");
    }
    let both = requests[49].arrived - requests[0].arrived;
    assert!(both < Duration::from_millis(900), "one host does not wait for the other: {both:?}");
}

/// Half of the list is at hosts that never answer or drip; with two requests at a time and half a second each it would
/// take ten seconds.
#[test]
fn a_host_that_does_not_answer_does_not_hold_its_shard() {
    let image = jpeg(20, 20, 1);
    let list = [urls("a.test", 40), urls("b.test", 40), urls("c.test", 80)].concat();
    let mut world = World::new(&list, move |request| match request.host.as_str() {
        "a.test" => Reply::ok(&image).delivered(Delivery::Silent),
        "b.test" => Reply::ok(&image).delivered(Delivery::Drip(Duration::from_millis(50))),
        _ => Reply::ok(&image),
    });
    world.config.per_host_in_flight = 2;
    world.config.deadline_seconds = 0.5;
    world.config.max_host_failures = 4;
    let started = Instant::now();
    let report = world.run();
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    assert_eq!(report.tally.kept, 80);
    let (timeouts, given_up) = (report.tally.rejected["timeout"], report.tally.rejected["host-failing"]);
    assert_eq!(timeouts + given_up, 80);
    assert!((8..=16).contains(&timeouts), "{timeouts} timeouts");
    assert_eq!(world.server.requests().len() as u64, 80 + timeouts);
}

/// More shards than are ever open at once, each with a row that hangs: the others do not wait for it.
#[test]
fn a_slow_row_in_every_shard_delays_the_run_once() {
    let image = jpeg(20, 20, 1);
    let list: Vec<String> = (0..100)
        .map(|idx| format!("http://{}/{idx}", if idx % 20 == 0 { "a.test" } else { "b.test" }))
        .collect();
    let mut world = World::new(&list, move |request| {
        let reply = Reply::ok(&image);
        if request.host == "a.test" { reply.delivered(Delivery::Silent) } else { reply }
    });
    world.config.number_sample_per_shard = 20;
    world.config.deadline_seconds = 1.0;
    let started = Instant::now();
    let report = world.run();
    assert_eq!((report.tally.kept, report.tally.rejected["timeout"]), (95, 5));
    assert!(started.elapsed() < Duration::from_millis(2500), "{:?}", started.elapsed());
}

/// More requests hang than are under way at first: those behind them do not wait for their deadlines.
#[test]
fn requests_that_hang_do_not_hold_up_the_others() {
    let image = jpeg(20, 20, 1);
    let list = [urls("a.test", 40), urls("b.test", 40), urls("c.test", 20)].concat();
    let mut world = World::new(&list, move |request| {
        let reply = Reply::ok(&image);
        if request.host == "c.test" { reply } else { reply.delivered(Delivery::Silent) }
    });
    world.config.per_host_in_flight = 40;
    world.config.deadline_seconds = 3.0;
    let started = Instant::now();
    let report = world.run();
    assert_eq!((report.tally.kept, report.tally.rejected["timeout"]), (20, 80));
    let requests = world.server.requests();
    let last =
        requests.iter().filter(|request| request.host == "c.test").map(|request| request.arrived).max();
    assert!(last.unwrap() - started < Duration::from_millis(2000), "{:?}", last.unwrap() - started);
}
