// Where frames come from: a still picture, a video file, the webcam, the server's example.
// A source has `live` (whether it moves), `grab()` and `close()`.

const READY = HTMLMediaElement.HAVE_CURRENT_DATA;

class Still {
  live = false;

  constructor(bitmap) {
    this.bitmap = bitmap;
  }

  async grab() {
    return this.bitmap;
  }

  close() {
    this.bitmap.close();
  }
}

class Moving {
  live = true;

  constructor(video, release) {
    this.video = video;
    this.release = release;
  }

  /** The frame that is shown now; a video that ended starts again by itself. */
  async grab() {
    while (this.video.readyState < READY) await new Promise((done) => setTimeout(done, 20));
    return this.video;
  }

  close() {
    this.video.pause();
    this.release();
  }
}

function player() {
  const video = document.createElement("video");
  video.muted = true;
  video.loop = true;
  video.playsInline = true;
  return video;
}

export async function openBlob(blob) {
  try {
    return new Still(await createImageBitmap(blob));
  } catch {
    throw new Error("This picture cannot be read by the browser.");
  }
}

export async function openFile(file) {
  if (!file.type.startsWith("video/")) return openBlob(file);
  const video = player();
  const url = URL.createObjectURL(file);
  video.src = url;
  try {
    await video.play();
  } catch {
    URL.revokeObjectURL(url);
    throw new Error("This video cannot be played by the browser.");
  }
  return new Moving(video, () => URL.revokeObjectURL(url));
}

export async function openCamera() {
  if (!navigator.mediaDevices) {
    throw new Error("Browsers give the webcam to pages of localhost or https alone.");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: 1280 }, audio: false });
  } catch (error) {
    throw new Error(
      error.name === "NotAllowedError"
        ? "The webcam was not allowed."
        : "No webcam can be used here.",
    );
  }
  const video = player();
  video.srcObject = stream;
  await video.play();
  return new Moving(video, () => stream.getTracks().forEach((track) => track.stop()));
}

/**
 * A frame as it goes to the server: {bitmap, blob}, scaled down to `side` and `maxPixels`.
 * `side` is in pixels, 0 for no limit.
 */
export async function capture(source, side, maxPixels) {
  const picture = await source.grab();
  const width = picture.videoWidth ?? picture.width;
  const height = picture.videoHeight ?? picture.height;
  const scale = Math.min(
    1,
    side ? side / Math.max(width, height) : 1,
    Math.sqrt(maxPixels / (width * height)),
  );
  const size = [width, height].map((length) => Math.max(1, Math.floor(length * scale)));
  const canvas = new OffscreenCanvas(...size);
  const context = canvas.getContext("2d", { alpha: false });
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, ...size);
  const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
  return { bitmap: canvas.transferToImageBitmap(), blob };
}
