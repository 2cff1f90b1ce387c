// What htmx does not do: say when the connection is lost, pause where it was never seen, show the pictures that were
// picked, take a quick prompt.

const offline = document.getElementById("offline");
for (const [name, lost] of [["htmx:sse:error", true], ["htmx:sse:after:connection", false]]) {
  document.body.addEventListener(name, () => { offline.hidden = !lost; });
}

// htmx pauses a tab that gets hidden. One that was opened in the background never gets so: it pauses once it is up to date.
document.body.addEventListener("htmx:sse:before:message", () => {
  if (document.hidden) document.dispatchEvent(new Event("visibilitychange"));
});

document.body.addEventListener("change", (event) => {
  const field = event.target;
  if (field.id !== "field-image") return;
  const picked = document.getElementById("picked");
  for (const image of picked.children) URL.revokeObjectURL(image.src);
  picked.replaceChildren(...[...field.files].map((file) => {
    const image = new Image(64, 64);
    image.src = URL.createObjectURL(file);
    image.title = file.name;
    return image;
  }));
});

document.body.addEventListener("click", (event) => {
  const prompt = event.target.dataset.prompt;
  if (prompt === undefined) return;
  const field = document.getElementById("field-prompt");
  field.value = prompt;
  field.focus();
});
