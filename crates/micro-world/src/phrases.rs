//! Text that says little about any picture: vague captions, boilerplate of web pages, small talk.

use crate::scene::{random_color, random_shape};
use oqvl_stage::Rng;
use rand::Rng as _;
use rand::seq::IndexedRandom;

/// True of nearly every picture, informative about none.
const VAGUE: [&str; 16] = [
    "an image of some things",
    "a picture",
    "some shapes",
    "a few objects",
    "colorful shapes on a dark background",
    "an abstract picture",
    "a simple drawing",
    "things of different colors",
    "an image with shapes in it",
    "something on a gray background",
    "a nice picture of shapes",
    "a drawing of some objects",
    "several things in one image",
    "geometric art",
    "shapes and colors",
    "a small image of something",
];

/// Text that pages put beside any picture; `{n}` is a random number.
const BOILERPLATE: [&str; 32] = [
    "click here to buy now",
    "img_{n}.jpg",
    "dsc_{n}.png",
    "buy one get one free",
    "subscribe to our newsletter",
    "page {n} of {n}",
    "all rights reserved",
    "copyright {n} all rights reserved",
    "sign in to see more",
    "share this on social media",
    "free shipping on orders over {n} dollars",
    "image not available",
    "no title",
    "loading please wait",
    "add to cart",
    "best price only {n} dollars",
    "untitled {n}",
    "advertisement",
    "read more about this offer",
    "click to enlarge",
    "sale {n} percent off today only",
    "follow us for more news",
    "terms and conditions apply",
    "posted by admin on day {n}",
    "{n} comments",
    "download the app now",
    "photo {n} of {n}",
    "banner_{n}.gif",
    "item number {n} is in stock",
    "back to home page",
    "contact us for a free quote",
    "please enable cookies to continue",
];

/// A person's line and the answer to it.
const SMALL_TALK: [(&str, &str); 24] = [
    ("hello", "hello, how can i help you?"),
    ("good morning", "good morning, what can i do for you?"),
    ("how are you?", "i am fine, thank you."),
    ("thank you", "you are welcome."),
    ("what can you do?", "i can look at pictures and answer questions about them."),
    ("who are you?", "i am a small model that looks at pictures."),
    ("goodbye", "goodbye, see you soon."),
    ("can you help me?", "yes, please ask your question."),
    ("what is a circle?", "a circle is a round shape."),
    ("what is a ring?", "a ring is a circle with a hole."),
    ("what is a triangle?", "a triangle is a shape with three sides."),
    ("what is a square?", "a square is a shape with four equal sides."),
    ("what is a diamond?", "a diamond is a square that stands on its corner."),
    ("what is a cross?", "a cross is made of two bars."),
    ("how many sides does a triangle have?", "three"),
    ("how many sides does a square have?", "four"),
    ("name a color", "{color}"),
    ("name a shape", "{shape}"),
    ("i like {color}", "{color} is a nice color."),
    ("draw a {shape}", "i can not draw, but i can describe a {shape}."),
    ("is {color} a color?", "yes"),
    ("is {color} a shape?", "no"),
    ("is a {shape} a shape?", "yes"),
    ("is a {shape} a color?", "no"),
];

/// A caption that is true of nearly any picture.
pub(crate) fn vague(rng: &mut Rng) -> String {
    (*VAGUE.choose(rng).expect("there are vague captions")).to_owned()
}

/// A caption that has nothing to do with its picture and could stand on any page.
pub(crate) fn boilerplate(rng: &mut Rng) -> String {
    let mut text = (*BOILERPLATE.choose(rng).expect("there is boilerplate")).to_owned();
    while text.contains("{n}") {
        let number: u32 = rng.random_range(1..2000);
        text = text.replacen("{n}", &number.to_string(), 1);
    }
    text
}

/// A line of small talk and its answer.
pub(crate) fn small_talk(rng: &mut Rng) -> (String, String) {
    let (line, answer) = SMALL_TALK.choose(rng).expect("there is small talk");
    let (color, shape) = (random_color(rng).name(), random_shape(rng).name());
    // `a orange` does not come up: colours are named without article here.
    let fill = |text: &str| text.replace("{color}", color).replace("{shape}", shape);
    (fill(line), fill(answer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oqvl_stage::stream;

    #[test]
    fn no_placeholder_is_left() {
        for index in 0..500 {
            let mut rng = stream(0, "test", 0, 0, index);
            let (line, answer) = small_talk(&mut rng);
            for text in [vague(&mut rng), boilerplate(&mut rng), line, answer] {
                assert!(!text.contains(['{', '}']) && !text.is_empty(), "{text}");
                assert!(!text.contains(|c: char| c.is_ascii_uppercase()), "{text}");
            }
        }
    }
}
