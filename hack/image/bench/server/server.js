// Greets in the language of $LANGUAGE.
const express = require("express");
const lodash = require("lodash");

const messages = require("./messages/" + process.env.LANGUAGE);
const app = express();

app.get("/", (req, res) => res.json({ greeting: lodash.capitalize(messages.greeting) }));
app.listen(process.env.PORT, "127.0.0.1", () => console.log("listening as uid", process.getuid()));
