//! Every format, with the awkward cases of each.

mod parquet_lists;
mod quotes;

use super::*;
use arrow_array::cast::AsArray as _;
use arrow_array::types::{Decimal128Type, TimestampMicrosecondType};
use arrow_array::{
    Array as _, ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray,
    Float32Array, Float64Array, Int8Array, Int32Array, LargeStringArray, ListArray, RecordBatch, StringArray,
    StringViewArray, StructArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow_schema::Field;
use flate2::Compression;
use flate2::write::GzEncoder;
use oqvl_shard_io::write_atomic;
use serde_json::json;
use std::io::Write as _;
use std::sync::Arc;
use tempfile::TempDir;

struct Case {
    dir: TempDir,
    config: DataFetchConfig,
}

impl Case {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            write_atomic(&dir.path().join(name), bytes).unwrap();
        }
        let config = DataFetchConfig { number_sample_per_shard: 2, ..Default::default() };
        Self { dir, config }
    }

    fn survey(&self) -> Result<UrlList, DataFetchError> {
        UrlList::survey(&self.config, self.dir.path(), &|| Ok(()))
    }

    fn shards(&self) -> Vec<ShardRows> {
        let list = self.survey().unwrap();
        let shards = read_shards(&list, &|_| true).unwrap();
        for shard in &shards {
            assert_eq!(shard.rows.len() as u64, list.rows_in_shard(shard.shard_idx));
        }
        assert_eq!(shards.len(), list.shards().len());
        shards
    }

    /// All rows as `url|caption|extra`.
    fn rows(&self) -> Vec<String> {
        let text = |row: &UrlRow| {
            let url = row.url.clone().unwrap_or_else(|reject| format!("({})", reject.reason()));
            format!("{url}|{}|{}", row.caption.as_deref().unwrap_or("-"), json!(row.extra))
        };
        self.shards().iter().flat_map(|shard| &shard.rows).map(text).collect()
    }
}

fn read_shards(list: &UrlList, wants: &dyn Fn(usize) -> bool) -> Result<Vec<ShardRows>, DataFetchError> {
    let mut shards = Vec::new();
    list.for_each_shard(wants, &|| ControlFlow::Continue(()), &mut |shard| {
        shards.push(shard);
        ControlFlow::Continue(())
    })?;
    Ok(shards)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn parquet(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, column)| (name, column, true)),
    );
    let batch = batch.unwrap();
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn txt_lines_may_hold_commas_quotes_and_blanks() {
    let text = b"\xef\xbb\xbfhttp://a/x,y,z.jpg\r\n\r\n  http://a/\"q\".png \n\xff\nhttp://a/last";
    let case = Case::new(&[("urls.txt", text)]);
    assert_eq!(
        case.rows(),
        ["http://a/x,y,z.jpg|-|[]", "http://a/\"q\".png|-|[]", "(bad-row)|-|[]", "http://a/last|-|[]"]
    );
}

#[test]
fn csv_is_quoted_and_ragged() {
    let text = "\u{feff}uid,caption,url\n\
        1,\"a \"\"red\"\" square, two\nlines\",http://a/1\n\
        2,,http://a/2\n\
        3\n\
        \n\
        4,plain, http://a/4 ,surplus\n\
        5,plain, http://a/5 \n";
    let case = Case::new(&[("urls.csv", text.as_bytes())]);
    assert_eq!(
        case.rows(),
        [
            "http://a/1|a \"red\" square, two\nlines|[\"1\"]",
            "http://a/2||[\"2\"]",
            "(bad-url)|-|[\"3\"]",
            "(bad-row)|-|[null]",
            "http://a/5|plain|[\"5\"]",
        ]
    );
    assert_eq!(case.survey().unwrap().columns()[0].data_type, DataType::Utf8);
}

#[test]
fn tsv_gzip_and_zstd() {
    let text = b"url\tcaption\nhttp://a/1\ta, b\nhttp://a/2\t\xff\n";
    for (name, bytes) in [
        ("urls.tsv", text.to_vec()),
        ("urls.tsv.gz", gzip(text)),
        ("urls.tsv.zst", zstd::encode_all(&text[..], 3).unwrap()),
        // Two frames one after the other, as parallel compressors and `cat` leave them.
        ("urls.TSV.GZ", [gzip(&text[..20]), gzip(&text[20..])].concat()),
        ("b.tsv.zst", [&text[..20], &text[20..]].map(|part| zstd::encode_all(part, 1).unwrap()).concat()),
        // The name does not always know.
        ("c.tsv", gzip(text)),
    ] {
        assert_eq!(Case::new(&[(name, &bytes)]).rows(), ["http://a/1|a, b|[]", "(bad-row)|-|[]"]);
    }
}

#[test]
fn json_lines_keep_broken_rows_in_place() {
    let text = br#"{"url": "http://a/1", "caption": "one", "uid": "u1", "clip": 1}

        {"url": "http://a/2", "caption": null, "clip": 0.5}
        {"url": "http://a/3",
        ["http://a/4"]
        {"url": 5, "caption": 6, "uid": "u5"}
        {"caption": "no url", "clip": null}
        {"url": "http://a/6", "caption": "NaN, which Python writes", "clip": NaN}"#;
    let mut case = Case::new(&[("urls.jsonl", text)]);
    case.config.save_additional_columns = vec!["clip".to_owned()];
    assert_eq!(
        case.rows(),
        [
            "http://a/1|one|[\"u1\",1]",
            "http://a/2|-|[null,0.5]",
            "(bad-row)|-|[null,null]",
            "(bad-row)|-|[null,null]",
            "(bad-url)|6|[\"u5\",null]",
            "(bad-url)|no url|[null,null]",
            "http://a/6|NaN, which Python writes|[null,null]",
        ]
    );
    let list = case.survey().unwrap();
    assert_eq!(list.columns().iter().map(|column| column.name.as_str()).collect::<Vec<_>>(), ["uid", "clip"]);
    assert_eq!(list.columns()[1].data_type, DataType::Float64);
}

#[test]
fn json_list_is_streamed_and_syntax_errors_are_fatal() {
    let text = br#"[{"text": "one", "url": "http://a/1"}, {"url": "http://a/2", "text": "two"}, 3]"#;
    let mut case = Case::new(&[("urls.json", text)]);
    case.config.caption_col = Some("text".to_owned());
    assert_eq!(case.rows(), ["http://a/1|one|[]", "http://a/2|two|[]", "(bad-row)|-|[]"]);
    for broken in ["[{\"url\": \"http://a/1\"}, {\"url\"", "\"http://a/1\"", "[] []", ""] {
        let error = Case::new(&[("urls.json", broken.as_bytes())]).survey().unwrap_err();
        assert!(matches!(error, DataFetchError::ListFormat { format: "json", .. }), "{broken}: {error}");
    }
}

#[test]
fn json_lists_of_python_are_read() {
    let text = br#"[{"url": "http://a/1", "caption": "NaN, which Python writes", "clip": NaN},
        {"url": "http://a/2", "caption": "two", "clip": -Infinity}, {"url": "http://a/3", "caption": "three", "clip": 0.5}]"#;
    let marked = [b"\xef\xbb\xbf", &text[..]].concat();
    let mut case = Case::new(&[("urls.json", &marked)]);
    case.config.save_additional_columns = vec!["clip".to_owned()];
    let rows =
        ["http://a/1|NaN, which Python writes|[null]", "http://a/2|two|[null]", "http://a/3|three|[0.5]"];
    assert_eq!(case.rows(), rows);
}

#[test]
fn a_missing_column_is_named_with_its_key_and_the_alternatives() {
    let mut case = Case::new(&[("urls.csv", b"link,text\nhttp://a/1,one\n")]);
    let error = case.survey().unwrap_err().to_string();
    assert!(error.starts_with("url_col: names column `url`, but "), "{error}");
    assert!(error.ends_with("urls.csv has only `link`, `text`"), "{error}");
    case.config.url_col = "link".to_owned();
    assert_eq!(case.rows(), ["http://a/1|-|[]"]);
    case.config.caption_col = Some("alt".to_owned());
    assert!(case.survey().unwrap_err().to_string().starts_with("caption_col: "));
    case.config.caption_col = None;
    case.config.uid_col = Some("uid".to_owned());
    assert!(case.survey().unwrap_err().to_string().starts_with("uid_col: "));
}

#[test]
fn shards_end_with_files_and_are_numbered_on() {
    let case = Case::new(&[
        ("b.txt", b"b1\nb2\n"),
        ("a.txt", b"a1\na2\na3\n"),
        ("c.txt", b""),
        ("d.txt", b"d1\n"),
        ("notes.md", b"not a list"),
        (".hidden.txt", b"h\n"),
    ]);
    let shards = case.shards();
    let urls = |shard: &ShardRows| shard.rows.iter().map(|row| row.url.clone().unwrap()).collect::<Vec<_>>();
    let found: Vec<_> = shards.iter().map(|shard| (shard.shard_idx, urls(shard))).collect();
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let expected =
        [(0, owned(&["a1", "a2"])), (1, owned(&["a3"])), (2, owned(&["b1", "b2"])), (3, owned(&["d1"]))];
    assert_eq!(found, expected);
}

#[test]
fn only_wanted_shards_are_handed_out() {
    let case = Case::new(&[("a.txt", b"a1\na2\na3\na4\na5\n"), ("b.txt", b"b1\n")]);
    let list = case.survey().unwrap();
    let shards = read_shards(&list, &|shard_idx| shard_idx == 1 || shard_idx == 3).unwrap();
    assert_eq!(shards.iter().map(|shard| shard.shard_idx).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(shards[0].rows[0].url.as_deref(), Ok("a3"));
    assert_eq!(read_shards(&list, &|_| false).unwrap(), []);
}

#[test]
fn a_list_that_grew_or_shrank_is_noticed() {
    let case = Case::new(&[("a.txt", b"a1\na2\na3\n")]);
    let list = case.survey().unwrap();
    for (changed, found) in [("a1\na2\n", 2), ("a1\na2\na3\na4\na5\n", 4)] {
        write_atomic(&case.dir.path().join("a.txt"), changed.as_bytes()).unwrap();
        let error = read_shards(&list, &|_| true).unwrap_err();
        let is_right =
            matches!(&error, DataFetchError::ListChanged { expected: 3, found: rows, .. } if *rows == found);
        assert!(is_right, "{error}");
    }
}

#[test]
fn an_empty_list_has_no_shards() {
    for (name, bytes) in [("a.txt", &b""[..]), ("a.csv", b""), ("a.jsonl", b"\n\n"), ("a.json", b"[]")] {
        assert_eq!(Case::new(&[(name, bytes)]).shards(), [], "{name}");
    }
}

#[test]
fn unknown_and_missing_lists_are_told_apart() {
    let case = Case::new(&[("list.xml", b"<x/>")]);
    let is_wrong_key =
        |error: &DataFetchError| matches!(error, DataFetchError::Config(wrong) if wrong.key() == "url_list");
    assert!(is_wrong_key(&case.survey().unwrap_err()));
    let survey = |name: &str| UrlList::survey(&case.config, &case.dir.path().join(name), &|| Ok(()));
    assert!(is_wrong_key(&survey("list.xml").unwrap_err()));
    assert!(matches!(survey("none.txt").unwrap_err(), DataFetchError::Io { .. }));
    let mut config = case.config.clone();
    config.input_format = Some(InputFormat::Txt);
    assert_eq!(
        UrlList::survey(&config, &case.dir.path().join("list.xml"), &|| Ok(())).unwrap().shards().len(),
        1
    );
}

#[test]
fn the_survey_can_be_interrupted() {
    let case = Case::new(&[("a.txt", b"a1\n")]);
    let stop = || Err(DataFetchError::Interrupted(oqvl_stage::Interrupted));
    let error = UrlList::survey(&case.config, case.dir.path(), &stop).unwrap_err();
    assert!(matches!(error, DataFetchError::Interrupted(_)));
}

#[test]
fn a_file_of_something_else_is_named() {
    for (name, expected) in [
        ("urls.txt", "none of its 3 rows can be read"),
        ("urls.jsonl", "none of its 3 rows can be read"),
        ("urls.csv", "column `url`"),
    ] {
        let case = Case::new(&[(name, b"\xff\xfe\x00\n\xf0\xff\n\xff\xff\xff\n")]);
        let error = case.survey().unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn digests_to_verify_stand_apart_from_what_is_carried() {
    let mut case = Case::new(&[(
        "a.csv",
        b"url,digest,other\nhttp://a/1,00ff,x\nhttp://a/2,,y\nnot a row,1,2,3,4\n".as_slice(),
    )]);
    case.config.save_additional_columns = vec!["other".to_owned()];
    assert!(case.shards()[0].rows.iter().all(|row| row.expected_hash.is_none()));
    case.config.verify_hash = Some(("digest".to_owned(), crate::config::ComputeHash::Sha256));
    let shards = case.shards();
    let expected: Vec<_> =
        shards.iter().flat_map(|shard| &shard.rows).map(|row| row.expected_hash.clone()).collect();
    assert_eq!(expected, [Some("00ff".to_owned()), Some(String::new()), None]);
    assert_eq!(case.rows()[0], "http://a/1|-|[\"x\"]");
    case.config.verify_hash = Some(("missing".to_owned(), crate::config::ComputeHash::Sha256));
    assert!(case.survey().unwrap_err().to_string().starts_with("verify_hash: names column `missing`"));
}

#[test]
fn shards_may_be_numbered_from_anywhere() {
    let case = Case::new(&[("a.txt", b"u\nv\nw\n"), ("b.txt", b"x\n")]);
    let list = case.survey().unwrap().numbered_from(7);
    assert_eq!(list.shards(), 7..10);
    assert_eq!([6, 7, 8, 9, 10].map(|idx| list.rows_in_shard(idx)), [0, 2, 1, 1, 0]);
    let read: Vec<_> =
        read_shards(&list, &|idx| idx != 8).unwrap().into_iter().map(|shard| shard.shard_idx).collect();
    assert_eq!(read, [7, 9]);
    assert_eq!(Case::new(&[("a.txt", b"")]).survey().unwrap().numbered_from(3).shards(), 3..3);
}

#[test]
fn boxes_are_the_last_column_that_is_carried() {
    let mut case = Case::new(&[(
        "a.jsonl",
        b"{\"url\": \"u\", \"faces\": [[0.1, 0.2, 0.3, 0.4]], \"uid\": \"7\", \"x\": 1}\n",
    )]);
    assert_eq!(case.survey().unwrap().box_idx(), None);
    // `uid` may be named or not.
    for additional in [vec!["x"], vec!["x", "uid"]] {
        case.config.save_additional_columns = additional.into_iter().map(str::to_owned).collect();
        case.config.bbox_col = Some("faces".to_owned());
        let list = case.survey().unwrap();
        let names: Vec<_> = list.columns().iter().map(|column| column.name.as_str()).collect();
        assert_eq!((names, list.box_idx()), (vec!["uid", "x", "faces"], Some(2)));
        assert_eq!(case.rows(), ["u|-|[\"7\",1,[[0.1,0.2,0.3,0.4]]]"]);
    }
    case.config.bbox_col = Some("boxes".to_owned());
    assert!(case.survey().unwrap_err().to_string().starts_with("bbox_col: names column `boxes`"));
    let mut without = Case::new(&[("a.csv", b"url\nu\n")]);
    without.config.save_additional_columns = vec!["uid".to_owned()];
    assert!(
        without.survey().unwrap_err().to_string().starts_with("save_additional_columns: names column `uid`")
    );
}

#[test]
fn a_json_file_may_hold_lines() {
    let text =
        "\u{feff}\n {\"url\": \"http://a/1\", \"caption\": \"one\"}\nbroken\n{\"url\": \"http://a/2\"}\n";
    let case = Case::new(&[("urls.json", text.as_bytes())]);
    assert_eq!(case.rows(), ["http://a/1|one|[]", "(bad-row)|-|[]", "http://a/2|-|[]"]);
}

#[test]
fn a_cut_compressed_list_is_an_error() {
    let text = (0..100).map(|row| format!("http://a/{row}\n")).collect::<String>();
    for (name, mut bytes) in
        [("a.txt.gz", gzip(text.as_bytes())), ("a.txt.zst", zstd::encode_all(text.as_bytes(), 3).unwrap())]
    {
        bytes.truncate(bytes.len() - 9);
        let error = Case::new(&[(name, &bytes)]).survey().unwrap_err();
        assert!(matches!(error, DataFetchError::ListFormat { format: "txt", .. }), "{name}: {error}");
    }
}

#[test]
fn a_pattern_names_files_in_order() {
    let case =
        Case::new(&[("b-1.txt", b"b1\n"), ("b-0.csv", b"url\nb0\n"), ("a.txt", b"a\n"), ("c.xml", b"<x/>")]);
    std::fs::create_dir(case.dir.path().join("deep")).unwrap();
    write_atomic(&case.dir.path().join("deep/b-2.txt"), b"b2\n").unwrap();
    let urls = |pattern: &str| -> Result<Vec<String>, DataFetchError> {
        let list = UrlList::survey(&case.config, &case.dir.path().join(pattern), &|| Ok(()))?;
        let shards = read_shards(&list, &|_| true)?;
        Ok(shards.iter().flat_map(|shard| &shard.rows).map(|row| row.url.clone().unwrap()).collect())
    };
    assert_eq!(urls("b-*").unwrap(), ["b0", "b1"]);
    assert_eq!(urls("**/*.txt").unwrap(), ["a", "b1", "b2"]);
    assert_eq!(urls("deep/*").unwrap(), ["b2"]);
    assert!(urls("d-*").unwrap_err().to_string().contains("no file matches this pattern"));
    assert!(urls("*").unwrap_err().to_string().contains("c.xml: its extension names no format"));
}

#[test]
fn bytes_are_refused_by_name() {
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("url", Arc::new(StringArray::from(vec!["http://a/1"]))),
        ("jpg", Arc::new(BinaryArray::from(vec![b"\xff\xd8".as_slice()]))),
    ];
    let mut case = Case::new(&[("list.parquet", &parquet(columns))]);
    assert_eq!(case.rows(), ["http://a/1|-|[]"]);
    case.config.save_additional_columns = vec!["jpg".to_owned()];
    let error = case.survey().unwrap_err().to_string();
    assert!(error.starts_with("save_additional_columns: column `jpg` of "), "{error}");
    assert!(error.ends_with("is of type Binary, which cannot be stored"), "{error}");
}

#[test]
fn a_field_of_a_tsv_ends_with_its_line() {
    let list = "url\tcaption\nhttp://a/1\t\"5 inch\nhttp://a/2\ttwo\r\n\nhttp://a/3\t\"6 inch\nhttp://a/4\t\"a\tb \"\"c\"\"\"\n\
        http://a/5\tx\ty\n";
    assert_eq!(
        Case::new(&[("urls.tsv", list.as_bytes())]).rows(),
        [
            "http://a/1|\"5 inch|[]",
            "http://a/2|two|[]",
            "http://a/3|\"6 inch|[]",
            "http://a/4|a\tb \"c\"|[]",
            "(bad-row)|-|[]"
        ]
    );
}

#[test]
fn cells_have_the_types_of_their_columns() {
    let head = "uid,url,caption,similarity,width,is_safe,note\n";
    let rows = "7,http://a/1,8,0.25,640,true,x\n8,http://a/2,9,1,,False,5\n9,http://a/3,10,,480,,\n";
    let mut case = Case::new(&[("a.csv", format!("{head}{rows}").as_bytes())]);
    case.config.save_additional_columns =
        ["similarity", "width", "is_safe", "note"].map(str::to_owned).to_vec();
    let types: Vec<_> = case.survey().unwrap().columns().iter().map(|it| it.data_type.clone()).collect();
    let expected = [DataType::Utf8, DataType::Float64, DataType::Int64, DataType::Boolean, DataType::Utf8];
    assert_eq!(types, expected);
    assert_eq!(
        case.rows(),
        [
            "http://a/1|8|[\"7\",0.25,640,true,\"x\"]",
            "http://a/2|9|[\"8\",1.0,null,false,\"5\"]",
            "http://a/3|10|[\"9\",null,480,null,\"\"]",
        ]
    );
    // The type is that of all files together.
    write_atomic(&case.dir.path().join("b.csv"), format!("{head}1,http://b/1,c,high,0.5,,\n").as_bytes())
        .unwrap();
    let rows = case.rows();
    assert_eq!(rows[0], "http://a/1|8|[\"7\",\"0.25\",640.0,true,\"x\"]");
    assert_eq!(rows[3], "http://b/1|c|[\"1\",\"high\",0.5,null,\"\"]");
}
