// The camera, one frame at a time: the next is taken when the last has its boxes.

const LONGEST_SIDE = 1280;

export class Camera {
  /** `onFrame(blob, bitmap)` shows one frame and returns when it has been answered. */
  constructor(video, onFrame) {
    this.video = video;
    this.onFrame = onFrame;
    this.stream = null;
  }

  get on() {
    return this.stream !== null;
  }

  async start() {
    if (!navigator.mediaDevices?.getUserMedia) throw new Error("this browser gives pages no camera");
    const wanted = { width: { ideal: LONGEST_SIDE }, facingMode: "environment" };
    this.stream = await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
    this.video.srcObject = this.stream;
    await this.video.play();
    this.#run(this.stream);
  }

  stop() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = null;
    this.video.srcObject = null;
  }

  async #run(stream) {
    const canvas = document.createElement("canvas");
    while (this.stream === stream) {
      const scale = Math.min(1, LONGEST_SIDE / Math.max(this.video.videoWidth, this.video.videoHeight));
      canvas.width = Math.round(this.video.videoWidth * scale);
      canvas.height = Math.round(this.video.videoHeight * scale);
      canvas.getContext("2d").drawImage(this.video, 0, 0, canvas.width, canvas.height);
      const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.88));
      const bitmap = await createImageBitmap(canvas);
      if (this.stream === stream) await this.onFrame(blob, bitmap);
      await new Promise(requestAnimationFrame);
    }
  }
}
