// The page of a student: it decodes a picture, gives its bytes to the network, and shows the probabilities.
"use strict";
const { card, examples } = kdlab;
const $ = (id) => document.getElementById(id);
const canvas = $("canvas");
const context = canvas.getContext("2d", { willReadFrequently: true });
const LONGEST = 1024; // Pixels of a side; larger pictures are shrunk by the browser first.
const SHOWN = 20; // Rows of the table; of more classes, the likeliest are shown.
let session;
let stream = null;

const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const best = (shares) => shares.indexOf(Math.max(...shares));

/// Draws a picture on white, as it is or with its longest side shrunk.
function draw(source, width, height) {
    const scale = Math.min(1, LONGEST / Math.max(width, height));
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    canvas.className = canvas.width < 128 ? "small" : "";
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(source, 0, 0, canvas.width, canvas.height);
}

/// The student's probabilities for what is on the canvas, and the milliseconds that they took.
async function ask() {
    const { width, height } = canvas;
    const rgba = context.getImageData(0, 0, width, height).data;
    const begin = performance.now();
    const rgb = new Uint8Array(3 * width * height);
    for (let from = 0, to = 0; from < rgba.length; from += 4) {
        rgb[to++] = rgba[from];
        rgb[to++] = rgba[from + 1];
        rgb[to++] = rgba[from + 2];
    }
    const images = new ort.Tensor("uint8", rgb, [1, height, width, 3]);
    const { probabilities } = await session.run({ images }, ["probabilities"]);
    return { student: Array.from(probabilities.data), milliseconds: performance.now() - begin };
}

function share(value) {
    const cell = document.createElement("td");
    const meter = document.createElement("meter");
    meter.value = value;
    meter.setAttribute("aria-hidden", "true");
    const text = document.createElement("data");
    text.value = value;
    text.textContent = percent(value);
    cell.append(meter, text);
    return cell;
}

function show({ student, milliseconds }, example) {
    const teacher = example?.teacher;
    let classes = card.classes.map((_, index) => index);
    if (classes.length > SHOWN) {
        classes = classes.sort((a, b) => student[b] - student[a]).slice(0, SHOWN);
    }
    const rows = classes.map((index) => {
        const row = document.createElement("tr");
        const name = document.createElement("th");
        name.scope = "row";
        name.textContent = card.classes[index];
        row.append(name, share(student[index]));
        if (teacher) {
            const cell = share(teacher[index]);
            cell.className = "teacher";
            row.append(cell);
        }
        if (example?.label === index) {
            row.className = "label";
            name.append(" (label)");
        }
        return row;
    });
    $("table").tBodies[0].replaceChildren(...rows);
    $("table").className = teacher ? "" : "alone";
    $("table").hidden = false;
    const said = (shares) => `${card.classes[best(shares)]} (${percent(Math.max(...shares))})`;
    const unsure = Math.max(...student) < card.threshold;
    let text = unsure
        ? `The student is not sure: ${said(student)} is below its threshold of ${percent(card.threshold)}.`
        : `The student says ${said(student)}.`;
    if (example) {
        text += ` The teacher says ${said(teacher)}. The label is ${card.classes[example.label]}.`;
    }
    // A screen reader reads what changes: with the camera on, only another class does.
    if (!stream || !$("status").textContent.startsWith(text.split("(")[0])) {
        $("status").textContent = text;
    }
    $("time").textContent = `${milliseconds.toFixed(1)} ms for this picture of ${canvas.width} x ${canvas.height} pixels`;
}

/// Shows what the student says of a file's or an example's bytes.
async function open(blob, name, example) {
    stop();
    $("trouble").textContent = "";
    for (const button of $("examples").children) {
        button.setAttribute("aria-pressed", String(button === example?.button));
    }
    let bitmap;
    try {
        bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "none" });
    } catch {
        $("trouble").textContent = `${name} can't be read as a picture; choose a PNG, JPEG or WebP.`;
        return;
    }
    draw(bitmap, bitmap.width, bitmap.height);
    canvas.setAttribute("aria-label", name);
    show(await ask(), example);
    document.body.dataset.shown = name;
}

async function start() {
    $("trouble").textContent = "";
    try {
        stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch {
        $("trouble").textContent = "The camera can't be used: allow it in the browser, or serve the page over https.";
        return;
    }
    const video = $("video");
    video.srcObject = stream;
    await video.play();
    [video.hidden, canvas.hidden] = [false, true];
    $("camera").textContent = "Stop the camera";
    while (stream) {
        draw(video, video.videoWidth, video.videoHeight);
        const answer = await ask();
        if (stream) {
            show(answer);
            document.body.dataset.shown = "camera";
        }
        await new Promise((resolve) => setTimeout(resolve, 200));
    }
}

function stop() {
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
    [$("video").hidden, canvas.hidden] = [true, false];
    $("camera").textContent = "Use the camera";
}

async function load() {
    const sees = card.framing === "squeeze" ? "" : " It sees the square in the centre of a picture.";
    $("about").textContent = `A small network that tells ${card.classes.length} classes apart: ${card.classes.join(", ")}.${sees}`;
    ort.env.wasm.numThreads = 1; // More would need headers that only a server can send.
    ort.env.wasm.wasmBinary = bytes(kdlab.wasm);
    const loader = new Blob([bytes(kdlab.loader)], { type: "text/javascript" });
    ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(loader) };
    session = await ort.InferenceSession.create(bytes(kdlab.network), { executionProviders: ["wasm"] });
    draw(canvas, card.stored_size, card.stored_size);
    await ask(); // The first picture takes longer than those after it.

    for (const [index, example] of examples.entries()) {
        const name = `Picture ${index + 1}: ${card.classes[example.label]}`;
        const image = document.createElement("img");
        [image.src, image.alt] = [`data:image/png;base64,${example.png}`, name];
        example.button = document.createElement("button");
        example.button.type = "button";
        example.button.setAttribute("aria-pressed", "false");
        example.button.append(image);
        example.button.addEventListener("click", () => open(new Blob([bytes(example.png)]), name, example));
        $("examples").append(example.button);
    }
    $("course").hidden = examples.length === 0;
    $("file").addEventListener("change", ({ target }) => {
        const [file] = target.files;
        if (file) {
            open(file, file.name);
        }
        target.value = "";
    });
    $("camera").addEventListener("click", () => (stream ? stop() : start()));
    document.addEventListener("dragover", (event) => {
        event.preventDefault();
        document.body.classList.add("dropping");
    });
    document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
    document.addEventListener("drop", (event) => {
        event.preventDefault();
        document.body.classList.remove("dropping");
        const [file] = event.dataTransfer.files;
        if (file) {
            open(file, file.name);
        }
    });
    $("status").textContent = "Choose a picture.";
    document.body.dataset.shown = "nothing";
}

load().catch((error) => {
    $("status").textContent = "";
    $("trouble").textContent = `The student can't run in this browser: ${error.message}`;
});
