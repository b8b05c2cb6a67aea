// What the TypeScript drivers share; see cells.py.

const SECONDS = 60;

function check(found, wanted) {
  const text = JSON.stringify(found);
  if (!text.includes(wanted)) throw new Error(`expected ${wanted}, got ${text}`);
}

export async function fill({ call, task, cancel, progress, limits = {} }) {
  const cells = {
    plain: async () => check(await call("add", { a: 1, b: 2 }), "sum 3"),
    task: task && (async () => check(await task("add", { a: 1, b: 2 }), "sum 3")),
    "question, plain": async () => check(await call("ask", {}), "name Ada"),
    "question, task": task && (async () => check(await task("ask", {}), "name Ada")),
    sampling: async () => check(await (task ?? call)("write", {}), "a haiku"),
    cancel:
      cancel &&
      (async () => {
        const read = async () => JSON.stringify(await call("count", {}));
        let count = await read();
        const changed = async () => {
          const before = count;
          while (count === before) {
            await new Promise((resolve) => setTimeout(resolve, 50));
            count = await read();
          }
        };
        await cancel(changed); // which waits for a change until its call has begun
        await changed();
      }),
    progress:
      progress &&
      (async () => {
        progress.length = 0;
        await call("add", { a: 1, b: 2 });
        check(progress, '"progress":2');
      }),
  };
  const row = {};
  for (const [name, cell] of Object.entries(cells)) {
    if (name in limits) row[name] = limits[name];
    else if (!cell) row[name] = "FAULT: the driver neither fills this cell nor says why not";
    else {
      let timer;
      const late = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error(`nothing within ${SECONDS} s`)), SECONDS * 1000);
      });
      try {
        await Promise.race([cell(), late]);
        row[name] = "works";
      } catch (error) {
        console.error(error);
        row[name] = `FAULT: ${error}`.slice(0, 300);
      } finally {
        clearTimeout(timer);
      }
    }
  }
  console.log(JSON.stringify(row));
  process.exit(0);
}
