//! Names what is in images, with a student that notebook 14 saved: cargo run --example classify -- STUDENT IMAGE...
use kdlab::data::read_image;
use kdlab::models::{Model, ModelCard, student};
use tch::{Device, Kind, no_grad};

fn main() -> kdlab::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or(kdlab::Error::Input("give a student and images to name".into()))?;
    let card = ModelCard::read(&file)?;
    let mut net = Model::new("student", Device::Cpu, 0, &|vs| student(vs, card.classes.len() as i64))?;
    net.load(&file)?;
    for path in arguments {
        let x = card.transform.apply(&read_image(&path, card.stored_size, card.framing)?.unsqueeze(0), Device::Cpu)?;
        let probabilities = no_grad(|| net.forward(&x, false))?.softmax(1, Kind::Float).squeeze(); // [classes]
        for (class, probability) in card.classes.iter().zip(Vec::<f32>::try_from(probabilities)?) {
            println!("{path}\t{class}\t{probability:.6}");
        }
    }
    Ok(())
}
