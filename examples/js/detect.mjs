// Detections in a picture, one a line: label, score, corners. Everything else is in the model:
//   triscale export runs/mine model.onnx --resize
//   npm install --ignore-scripts
//   node detect.mjs model.onnx picture.ppm 0.3     (convert picture.jpg picture.ppm)
// In a browser: import "onnxruntime-web" instead, and take the pixels from a canvas.
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-node";

/** The pixels of a PPM file (P6, 8 bits) as RGB. */
function readPpm(path) {
  const bytes = readFileSync(path);
  const head = /^P6\s+(\d+)\s+(\d+)\s+255\s/.exec(bytes.toString("latin1", 0, 64));
  if (!head) throw new Error(`${path}: expected a PPM file (P6, 8 bits)`);
  const [width, height] = [Number(head[1]), Number(head[2])];
  const data = new Uint8Array(bytes.subarray(head[0].length));
  if (data.length < 3 * width * height) throw new Error(`${path}: the file ends too early`);
  return { width, height, data: data.subarray(0, 3 * width * height) };
}

/** The class names in a model's metadata, at its end; onnxruntime's JavaScript can't ask for them. */
function readClasses(bytes) {
  const text = bytes.toString("latin1", Math.max(0, bytes.lastIndexOf("classes\x12")));
  const name = String.raw`"(?:[^"\\]|\\.)*"`;
  const found = new RegExp(String.raw`\[${name}(?:, ${name})*\]`).exec(text);
  return found ? JSON.parse(found[0]) : [];
}

async function main([model, picture, least = "0.3"]) {
  if (!picture) throw new Error("node detect.mjs MODEL.onnx PICTURE.ppm [LEAST_SCORE]");
  const bytes = readFileSync(model);
  const classes = readClasses(bytes);
  const session = await ort.InferenceSession.create(bytes, { logSeverityLevel: 3 });
  const { width, height, data } = readPpm(picture);
  const images = new ort.Tensor("uint8", data, [1, height, width, 3]);
  const { boxes, scores, labels, count } = await session.run({ images });
  for (let i = 0; i < Number(count.data[0]) && scores.data[i] >= Number(least); i++) {
    const corners = Array.from(boxes.data.subarray(4 * i, 4 * i + 4), (v) => v.toFixed(2));
    const label = classes[Number(labels.data[i])] ?? `class${labels.data[i]}`;
    console.log(label, scores.data[i].toFixed(4), ...corners);
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`detect: ${error.message}`);
  process.exitCode = 1;
});
