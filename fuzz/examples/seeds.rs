//! Writes first inputs for the targets that no collection of files has: `cargo run --release --example seeds --
//! corpus`.

use kdlab_fuzz::Left;
use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let corpus = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "corpus".to_owned()));
    let write = |target: &str, name: &str, bytes: &[u8]| {
        let folder = corpus.join(target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(name), bytes)
    };
    let [fit, history, rows] = Left::get().seeds();
    for (which, bytes) in [(0, fit), (1, history), (2, rows), (3, rows)] {
        write("checkpoint", &format!("{which}"), &[&[which][..], bytes].concat())?;
    }
    write("json", "history", history)?;
    let report = br#"{"sweep":{"name":"s","seeds":[0,1],"methods":["kd","dkd(1,2)"],"temperatures":[4.0],"alphas":[0.9],
        "labelled":[1.0],"noise":[0.0],"augmentations":["none"],"shift":3,"teachers":["all"],"omitted":1,
        "images":null,"epochs":1,"batch_size":8,"learning_rate":0.001,"size":8,"precision":"f32"},
        "profile":"smoke","data":"d","images":9,"stopped":null,"runs":[{
        "setting":{"teaching":null,"labelled":1.0,"noise":0.0,"augmentation":"none"},"seed":0,"key":"k",
        "best_epoch":1,"validation":0.5,"test":0.5,"recall":[0.5,0.5],
        "corrected":{"bias":0.1,"test":0.5,"recall":[0.5,0.5]},"teacher":0.7,"seconds":1.0,"images_per_second":3.0}]}"#;
    write("json", "report", report)?;
    write(
        "safetensors",
        "net",
        br#"{"__metadata__":{"format":"pt","classes":"[\"a\"]"},"fc.weight":{"dtype":"F32","shape":[3,4],
        "data_offsets":[0,48]},"fc.bias":{"dtype":"F32","shape":[3],"data_offsets":[48,60]}}"#,
    )
}
