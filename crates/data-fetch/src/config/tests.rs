//! Keys, names and refusals.

use super::*;
use oqvl_stage::ConfigFile;

fn check(lines: &str) -> Result<DataFetchConfig, String> {
    let file = ConfigFile::parse(&format!("seed = 1\n[data-fetch]\n{lines}")).unwrap();
    file.stage("data-fetch").map_err(|error| error.to_string())
}

#[test]
fn formats_are_called_what_the_config_calls_them() {
    use InputFormat::{Csv, Json, Jsonl, Parquet, Tsv, Txt};
    for format in [Txt, Csv, Tsv, Jsonl, Json, Parquet] {
        assert_eq!(serde_json::to_value(format).unwrap(), format.name());
    }
}

#[test]
fn keys_are_those_of_img2dataset() {
    let key = |per_shard, digits, shard, row| {
        let config = DataFetchConfig {
            number_sample_per_shard: per_shard,
            oom_shard_count: digits,
            ..Default::default()
        };
        config.sample_key(shard, row)
    };
    assert_eq!(key(10_000, 5, 0, 0), "000000000");
    assert_eq!(key(10_000, 8, 0, 0), "000000000000");
    assert_eq!(key(1_000, 5, 0, 1), "00000001");
    assert_eq!(key(10_000, 5, 1302, 9999), "013029999");
    assert_eq!(key(10_001, 5, 1, 10_000), "0000110000");
    assert_eq!(key(1, 5, 7, 0), "00007");
    assert_eq!(key(10, 1, 123, 4), "1234");
}

#[test]
fn keys_are_unique_and_ordered() {
    for per_shard in [1, 2, 9, 10, 11, 1000] {
        let config = DataFetchConfig { number_sample_per_shard: per_shard, ..Default::default() };
        let keys: Vec<_> =
            (0..3).flat_map(|shard| (0..per_shard as usize).map(move |row| (shard, row))).collect();
        let keys: Vec<_> = keys.into_iter().map(|(shard, row)| config.sample_key(shard, row)).collect();
        assert!(keys.windows(2).all(|pair| pair[0] < pair[1]), "{per_shard}");
    }
}

#[test]
fn a_list_is_all_one_must_name() {
    let config = check("url_list = \"urls.txt\"").unwrap();
    assert_eq!(config, DataFetchConfig { url_list: "urls.txt".into(), ..Default::default() });
    assert_eq!(config.inputs(), [PathBuf::from("urls.txt")]);
    assert!(check("").unwrap_err().starts_with("data-fetch.url_list: is missing"));
}

#[test]
fn choices_have_the_names_of_img2dataset() {
    let config =
        check("url_list = \"u\"\nresize_mode = \"keep_ratio_largest\"\nencode_format = \"webp\"").unwrap();
    assert_eq!(
        (config.resize_mode, config.encode_format),
        (ResizeMode::KeepRatioLargest, EncodeFormat::Webp)
    );
    assert!(check("url_list = \"u\"\nresize_mode = \"largest\"").unwrap_err().contains("keep_ratio_largest"));
}

#[test]
fn wrong_values_name_their_key() {
    for (line, key) in [
        ("image_size = 0", "image_size"),
        ("encode_quality = 101", "encode_quality"),
        ("encode_quality = 0", "encode_quality"),
        ("encode_format = \"png\"\nencode_quality = 95", "encode_quality"),
        ("encode_format = \"webp\"\nencode_quality = 102", "encode_quality"),
        ("downscale_interpolation = \"box\"", "downscale_interpolation"),
        ("uid_col = \"id\"\nsave_additional_columns = [\"uid\"]", "save_additional_columns"),
        ("bbox_col = \"caption\"", "bbox_col"),
        ("bbox_col = \"a\"\nsave_additional_columns = [\"a\"]", "save_additional_columns"),
        ("max_aspect_ratio = nan", "max_aspect_ratio"),
        ("max_aspect_ratio = 0.5", "max_aspect_ratio"),
        ("deadline_seconds = 0.0", "deadline_seconds"),
        ("deadline_seconds = inf", "deadline_seconds"),
        ("timeout = 0.0", "timeout"),
        ("timeout = 30.0", "timeout"),
        ("timeout = 4.0\ndeadline_seconds = 3.0", "timeout"),
        ("user_agent_token = \"my+bot\"", "user_agent_token"),
        ("user_agent_token = \"7bot\"", "user_agent_token"),
        ("user_agent_token = \"max-snippet\"", "user_agent_token"),
        ("robots_agents = [\"a\", \"b c\"]", "robots_agents"),
        ("robots_agents = [\"a/2\"]", "robots_agents"),
        ("per_host_requests_per_second = 0.0", "per_host_requests_per_second"),
        ("backoff_seconds = -1.0", "backoff_seconds"),
        ("in_flight = 0", "in_flight"),
        ("user_agent = \"a\\nb\"", "user_agent"),
        ("retry_failed = [\"timeout\", \"not-found\"]", "retry_failed"),
        ("retry_failed = [\"tiemout\"]", "retry_failed"),
        ("retry_failed = \"timeout\"", "retry_failed"),
        ("max_failed_fraction = 1.5", "max_failed_fraction"),
        ("incremental_mode = \"append\"", "incremental_mode"),
        ("user_agent_token = \"a b\"", "user_agent_token"),
        ("verify_hash = [\"digest\", \"md5\"]", "verify_hash"),
        ("verify_hash = [\"\", \"sha256\"]", "verify_hash"),
        ("compute_hash = \"none\"\nverify_hash = [\"digest\", \"none\"]", "verify_hash"),
        ("compute_hash = \"sha1\"", "compute_hash"),
        ("number_sample_per_shard = 0", "number_sample_per_shard"),
        ("save_additional_columns = [\"sha256\"]", "save_additional_columns"),
        ("save_additional_columns = [\"a\", \"a\"]", "save_additional_columns"),
        ("url_colum = \"u\"", "url_colum"),
    ] {
        let error = check(&format!("url_list = \"u\"\n{line}")).unwrap_err();
        assert!(error.starts_with(&format!("data-fetch.{key}: ")), "{line}: {error}");
    }
}

#[test]
fn wrong_values_are_told_in_a_sentence() {
    for (line, expected) in [
        (
            "retry_failed = \"yes\"",
            "data-fetch.retry_failed: must be true, false, or a list of reasons such as [\"timeout\"], got \"yes\"",
        ),
        (
            "verify_hash = \"sha256\"",
            "data-fetch.verify_hash: must be a list of a column and a kind of digest such as [\"digest\", \"sha256\"], got \
             the string \"sha256\"",
        ),
        (
            "verify_hash = [\"digest\"]",
            "data-fetch.verify_hash: must be a list of a column and a kind of digest such as [\"digest\", \"sha256\"], got 1 \
             value",
        ),
        (
            "verify_hash = [\"a\", \"sha256\", \"x\", \"y\"]",
            "data-fetch.verify_hash: must be a list of a column and a kind of digest such as [\"digest\", \"sha256\"], got 4 \
             values",
        ),
        (
            "verify_hash = [\"digest\", \"sha265\"]",
            "data-fetch.verify_hash: must be one of `none`, `md5`, `sha256`, `sha512`, got `sha265` (did you mean `sha256`?)",
        ),
        ("retires = 3", "data-fetch.retires: there is no such key; did you mean `retries`?"),
        (
            "colour = \"red\"",
            "data-fetch.colour: there is no such key; the stage's page in docs/stages lists the keys and their values",
        ),
        ("encode_quality = 300", "data-fetch.encode_quality: must be a smaller integer, got 300"),
        ("timeout = \"long\"", "data-fetch.timeout: must be a number, got the string \"long\""),
    ] {
        assert_eq!(check(&format!("url_list = \"u\"\n{line}")).unwrap_err(), expected);
    }
    let config = check("url_list = \"u\"\nverify_hash = [\"digest\", \"sha256\"]").unwrap();
    assert_eq!(config.verify_hash, Some(("digest".to_owned(), ComputeHash::Sha256)));
}

#[test]
fn a_short_deadline_needs_no_shorter_timeout_and_a_long_timeout_a_longer_deadline() {
    check("url_list = \"u\"\ndeadline_seconds = 3.0").unwrap();
    check("url_list = \"u\"\ntimeout = 30.0\ndeadline_seconds = 60.0").unwrap();
}

#[test]
fn keys_without_effect_are_keys() {
    let table = serde_json::to_value(DataFetchConfig::default()).unwrap();
    for key in DataFetchConfig::default().keys_without_effect() {
        assert!(table.get(key).is_some(), "{key}");
    }
}

#[test]
fn what_is_retried_is_chosen_by_reason() {
    let retry =
        |value: &str| check(&format!("url_list = \"u\"\nretry_failed = {value}")).unwrap().retry_failed;
    for (value, is_on, includes_timeout, includes_corrupt) in [
        ("false", false, false, false),
        ("true", true, true, false),
        ("[]", false, false, false),
        ("[\"corrupt-image\", \"http-status-401\"]", true, false, true),
    ] {
        let retry = retry(value);
        assert_eq!(retry.is_on(), is_on, "{value}");
        assert_eq!(retry.includes("timeout"), includes_timeout, "{value}");
        assert_eq!(retry.includes("corrupt-image"), includes_corrupt, "{value}");
        assert!(!retry.includes("not-found"), "{value}");
    }
}

#[test]
fn quality_is_what_the_format_makes_of_it() {
    for (lines, expected) in [
        ("", Encoding::Jpeg { quality: 95 }),
        ("encode_quality = 30", Encoding::Jpeg { quality: 30 }),
        ("encode_format = \"png\"", Encoding::Png { level: 6 }),
        ("encode_format = \"png\"\nencode_quality = 0", Encoding::Png { level: 0 }),
        ("encode_format = \"webp\"", Encoding::WebpLossy { quality: 95 }),
        ("encode_format = \"webp\"\nencode_quality = 101", Encoding::WebpLossless),
    ] {
        let config = check(&format!("url_list = \"u\"\n{lines}")).unwrap();
        assert_eq!(config.encoding(), expected, "{lines}");
    }
}

#[test]
fn each_direction_has_its_interpolation() {
    let config =
        check("url_list = \"u\"\nupscale_interpolation = \"bicubic\"\ndownscale_interpolation = \"fast\"");
    let config = config.unwrap();
    let found = [config.upscale_interpolation, config.downscale_interpolation];
    assert_eq!(found, [Interpolation::Cubic, Interpolation::Fast]);
}
