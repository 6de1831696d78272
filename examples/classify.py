"""Names what is in images, with a student that was saved as ONNX: python examples/classify.py STUDENT.onnx IMAGE..."""
import json
import sys

import numpy
import onnxruntime
from PIL import Image, ImageOps

if len(sys.argv) < 3:
    sys.exit(__doc__)
session = onnxruntime.InferenceSession(sys.argv[1])
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
for path in sys.argv[2:]:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")  # upright
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    images = numpy.asarray(image)[None]  # u8 [1, H, W, 3]; the file holds resizing and normalisation
    [probabilities] = session.run(["probabilities"], {"images": images})
    for name, probability in zip(classes, probabilities[0]):
        print(f"{path}\t{name}\t{probability:.6f}")
