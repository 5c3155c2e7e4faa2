import { mount } from "svelte";
import "virtual:palette.css";
import "../page/theme.css";
import "./live.css";
import Live from "./Live.svelte";
import { Live as State } from "./state.svelte";
import { followToken, takeToken } from "./token";

if (location.hash.startsWith("#/run/")) import("./RunPage.svelte"); // it comes beside the list
followToken();
const live = new State();
const token = takeToken();
live.first().then(() => mount(Live, { target: document.getElementById("page")!, props: { live, token } }));
