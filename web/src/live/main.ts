import { mount } from "svelte";
import "virtual:palette.css";
import "../page/theme.css";
import "./live.css";
import Live from "./Live.svelte";
import { followToken, takeToken } from "./token";

if (location.hash.startsWith("#/run/")) import("./RunPage.svelte"); // it comes beside the list
followToken();
mount(Live, { target: document.getElementById("page")!, props: { token: takeToken() } });
