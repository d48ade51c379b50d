//! Lists in S3 and behind HTTP: one object, a prefix, a pattern; what goes wrong; what is not fetched twice.

use crate::pictures::{self, csv};
use crate::program::Program;
use crate::proxy::Proxy;
use arrow_array::{ArrayRef, RecordBatch, StringArray};
use flate2::Compression;
use flate2::write::GzEncoder;
use oqvl_testkit::{Bucket, S3Server};
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn parquet(pictures: SocketAddr, captions: &[&str]) -> Vec<u8> {
    let urls: ArrayRef = Arc::new(StringArray::from_iter_values(
        (0..captions.len()).map(|idx| format!("http://{pictures}/{idx}")),
    ));
    let captions: ArrayRef = Arc::new(StringArray::from(captions.to_vec()));
    let batch = RecordBatch::try_from_iter([("url", urls), ("caption", captions)]).unwrap();
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

/// Lists in many formats, and things that are none.
fn fill(bucket: &Bucket, pictures: SocketAddr) {
    let line = |idx: u32, caption: &str| {
        format!("{{\"url\": \"http://{pictures}/{idx}\", \"caption\": \"{caption}\"}}\n")
    };
    bucket.put("lists/a.csv.gz", &gzip(&csv(pictures, &["a0", "a1"])));
    bucket.put("lists/b.jsonl.zst", &zstd::encode_all(line(0, "b0").as_bytes(), 3).unwrap());
    bucket.put("lists/c.parquet", &parquet(pictures, &["c0", "c1", "c2"]));
    bucket.put("lists/deep/d.csv", csv(pictures, &["d0"]).as_bytes());
    bucket.put("lists/embeddings.npz", &vec![7; 3 << 20]);
    bucket.put("lists-of-others/e.csv", csv(pictures, &["e0"]).as_bytes());
    bucket.put("single.csv", csv(pictures, &["s0"]).as_bytes());
}

#[test]
fn one_object_a_prefix_and_a_pattern() {
    let Some(server) = S3Server::get() else { return };
    let pictures = pictures::serve(Duration::ZERO);
    let bucket = server.bucket("shapes");
    fill(&bucket, pictures);
    let proxy = Proxy::start(server.address);
    let captions = |uri: &str| {
        let mut program = Program::new(uri);
        program.with_s3(proxy.address);
        program.succeed();
        program.captions()
    };
    assert_eq!(captions("s3://shapes/single.csv"), ["s0"]);
    proxy.take_counts();
    // As in a local folder: the lists in it, not what lies deeper, and nothing that is no list.
    assert_eq!(captions("s3://shapes/lists"), ["a0", "a1", "b0", "c0", "c1", "c2"]);
    assert!(proxy.take_counts().1 < 1 << 20, "what is no list is not fetched");
    assert_eq!(captions("s3://shapes/lists/"), ["a0", "a1", "b0", "c0", "c1", "c2"]);
    assert_eq!(captions("s3://shapes/lists/*.csv*"), ["a0", "a1"]);
    assert_eq!(captions("s3://shapes/lists*/**/*.csv"), ["d0", "e0"]);
    assert_eq!(captions("s3://shapes/lists/[bc].*"), ["b0", "c0", "c1", "c2"]);
}

#[test]
fn what_goes_wrong_is_one_sentence() {
    let Some(server) = S3Server::get() else { return };
    let bucket = server.bucket("sentences");
    bucket.put("list.csv", b"url\nx\n");
    let with = |uri: &str, change: &dyn Fn(&mut Program)| {
        let mut program = Program::new(uri);
        program.with_s3(server.address);
        change(&mut program);
        program
    };
    for (uri, code, sentence) in [
        (
            "s3://no-such-bucket/list.csv",
            1,
            "s3://no-such-bucket/list.csv: there is no bucket `no-such-bucket`",
        ),
        ("s3://no-such-bucket/*.csv", 1, "s3://no-such-bucket/*.csv: there is no bucket `no-such-bucket`"),
        (
            "s3://sentences/list.tsv",
            1,
            "s3://sentences/list.tsv: there is no such file, and nothing below that name",
        ),
        ("s3://sentences/lis", 1, "s3://sentences/lis: there is no such file, and nothing below that name"),
        ("s3://sentences/*.tsv", 1, "s3://sentences/*.tsv: nothing matches this pattern"),
        (
            "ftp://host/list.csv",
            2,
            "`ftp://host/list.csv`: unknown scheme; there are s3, gs, http, https and hf",
        ),
    ] {
        let last = with(uri, &|_| ()).fail(code);
        assert!(last.contains(sentence), "{last}");
        assert!(last.starts_with("oqvl-data-fetch: "), "{last}");
    }
    let nobody = Program::new("s3://sentences/list.csv").fail(1);
    assert!(nobody.contains("no credentials: set AWS_ACCESS_KEY_ID"), "{nobody}");
    let nobody = Program::new("gs://sentences/list.csv").fail(1);
    assert!(nobody.contains("no credentials: set GOOGLE_APPLICATION_CREDENTIALS"), "{nobody}");
    bucket.put_public("public.csv", b"url\nx\n");
    let anonymous = |program: &mut Program| {
        program.variable("AWS_ACCESS_KEY_ID", "");
        program.variable("AWS_SECRET_ACCESS_KEY", "");
        program.set("stores.s3_anonymous", "true");
        program.set("data-fetch.url_col", "\"link\"");
    };
    let denied = with("s3://sentences/list.csv", &anonymous).fail(1);
    assert!(denied.contains("s3://sentences/list.csv: access denied"), "{denied}");
    // It gets as far as the list itself.
    let public = with("s3://sentences/public.csv", &anonymous).fail(2);
    assert!(public.contains("data-fetch.url_col: names column `link`"), "{public}");
    let away = with("s3://sentences/list.csv", &|program| program.set("stores.offline", "true")).fail(1);
    assert!(away.contains("offline, and there is no complete copy of it here"), "{away}");
    let large =
        with("s3://sentences/list.csv", &|program| program.set("stores.max_mirror_bytes", "5")).fail(1);
    assert!(large.contains("6 bytes, more than `stores.max_mirror_bytes` (5)"), "{large}");
    let wrong =
        with("s3://sentences/list.csv", &|program| program.set("stores.s3_endpoint", "\"minio\"")).fail(2);
    assert!(wrong.contains("stores.s3_endpoint: expected http"), "{wrong}");
    let closed = with("s3://sentences/list.csv", &|program| {
        program.variable("AWS_ENDPOINT_URL", &format!("http://127.0.0.1:{}", crate::proxy::free_port()));
    });
    assert!(closed.fail(1).contains("cannot be reached"));
}

#[test]
fn what_is_here_is_not_fetched_again_and_what_changed_is() {
    let Some(server) = S3Server::get() else { return };
    let pictures = pictures::serve(Duration::ZERO);
    let bucket = server.bucket("again");
    // Blank lines are no rows.
    let long = "\n".repeat(300_000);
    let list = |caption: &str| csv(pictures, &[caption]) + &long;
    bucket.put("list.csv", list("first").as_bytes());
    let proxy = Proxy::start(server.address);
    let mut program = Program::new("s3://again/list.csv");
    program.with_s3(proxy.address);
    program.succeed();
    assert!(proxy.take_counts().1 > long.len() as u64);
    let run = program.succeed();
    assert!(run.stderr.contains("up to date"), "{}", run.stderr);
    assert!(proxy.take_counts().1 < 4096, "a listing is all there is to fetch");
    // Another config, the same list.
    program.set("data-fetch.encode_quality", "80");
    program.set("data-fetch.incremental_mode", "overwrite");
    program.succeed();
    assert!(proxy.take_counts().1 < 4096);
    assert_eq!(program.captions(), ["first"]);
    bucket.put("list.csv", list("second").as_bytes());
    program.set("data-fetch.incremental_mode", "incremental");
    assert!(program.fail(2).contains("finished shards of another list"));
    assert_eq!(program.captions(), ["first"]);
    program.set("data-fetch.incremental_mode", "overwrite");
    program.succeed();
    assert_eq!(program.captions(), ["second"]);
    program.set("data-fetch.incremental_mode", "incremental");
    // Without a network, the copy is as good.
    proxy.cut_after(0);
    program.set("stores.offline", "true");
    assert!(program.succeed().stderr.contains("up to date"));
}

#[test]
fn a_server_that_dies_in_the_middle_costs_only_the_rest() {
    let Some(server) = S3Server::get() else { return };
    let pictures = pictures::serve(Duration::ZERO);
    let bucket = server.bucket("cut");
    let mut list = csv(pictures, &["kept", "too"]);
    list += &"\n".repeat(4_000_000);
    let num_bytes = list.len() as u64;
    bucket.put("list.csv", list.as_bytes());
    let proxy = Proxy::start(server.address);
    let mut program = Program::new("s3://cut/list.csv");
    program.with_s3(proxy.address);
    proxy.cut_after(num_bytes / 2);
    let last = program.fail(1);
    assert!(last.contains("s3://cut/list.csv") && last.contains("cannot be reached"), "{last}");
    proxy.mend();
    proxy.take_counts();
    program.succeed();
    let (_, down) = proxy.take_counts();
    assert!(down < num_bytes * 3 / 4, "{down} of {num_bytes} bytes came again");
    assert_eq!(program.captions(), ["kept", "too"]);
}

#[test]
fn every_line_of_a_json_log_is_json() {
    let pictures = pictures::serve(Duration::ZERO);
    let mut program = Program::new("list.csv");
    let lines = |run: crate::program::Run, code: i32| -> Vec<serde_json::Value> {
        assert_eq!(run.code, Some(code), "{}", run.stderr);
        run.stderr
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
            .collect()
    };
    let json = ["--log-format", "json"];
    let missing = lines(program.run_with(&json), 1);
    let said = missing.last().unwrap()["fields"]["message"].as_str().unwrap();
    assert!(
        said.contains("input `list.csv` is not ready") && missing.last().unwrap()["level"] == "ERROR",
        "{said}"
    );
    oqvl_shard_io::write_atomic(&program.dir.path().join("list.csv"), csv(pictures, &["one"]).as_bytes())
        .unwrap();
    let done = lines(program.run_with(&json), 0);
    let last = &done.last().unwrap()["fields"];
    assert_eq!((&last["seen"], &last["kept"], &last["rejected"]), (&1.into(), &1.into(), &0.into()));
    let again = lines(program.run_with(&json), 0);
    assert!(again.last().unwrap()["fields"]["message"].as_str().unwrap().contains("up to date"));
    let beyond = lines(program.run_with(&["--log-format", "json", "--shards", "3..5"]), 0);
    let warned = beyond
        .iter()
        .any(|line| line["fields"]["message"] == "--shards 3..5 names no shard at all: there are 1");
    assert!(warned, "{beyond:?}");
    program.set("data-fetch.image_size", "0");
    let wrong = lines(program.run_with(&json), 2);
    assert!(wrong[0]["fields"]["message"].as_str().unwrap().contains("data-fetch.image_size"), "{wrong:?}");
}

#[test]
fn lists_behind_http() {
    let pictures = pictures::serve(Duration::ZERO);
    let served = csv(pictures, &["over", "http"]);
    let answer = served.clone();
    let web = crate::hub::serve(move |request| match request.path.as_str() {
        // A signed address, which is signed for its query and for GET alone.
        "/data/list.csv?sig=a%2Fb" if request.method == "GET" => {
            crate::hub::Answer::file(answer.as_bytes(), crate::hub::range_start(request))
        }
        "/parts/00.csv" | "/parts/01.csv" | "/parts/02.csv" => {
            let number = &request.path[7..9];
            crate::hub::Answer::file(csv(pictures, &[number]).as_bytes(), crate::hub::range_start(request))
        }
        "/forbidden.csv" => crate::hub::Answer::status(403),
        _ => crate::hub::Answer::status(404),
    });
    let program = |path: &str| Program::new(&format!("http://{}{path}", web.address));
    let signed = program("/data/list.csv?sig=a%2Fb");
    signed.succeed();
    assert_eq!(signed.captions(), ["over", "http"]);
    let num_requests = web.num_requests();
    assert!(signed.succeed().stderr.contains("up to date"));
    assert_eq!(web.num_requests(), num_requests + 1, "its tag is asked for and nothing else");
    let parts = program("/parts/{00..02}.csv");
    parts.succeed();
    assert_eq!(parts.captions(), ["00", "01", "02"]);
    assert!(program("/parts/{00..03}.csv").fail(1).contains("/parts/03.csv: there is no such file"));
    assert!(program("/nothing.csv").fail(1).contains("/nothing.csv: there is no such file"));
    assert!(program("/forbidden.csv").fail(1).contains("access denied: the server answers 403"));
}
