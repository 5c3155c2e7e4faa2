import { mount } from "svelte";
import "virtual:palette.css";
import "../page/theme.css";
import { followToken } from "../live/token";
import Explorer from "./Explorer.svelte";

followToken();
mount(Explorer, { target: document.getElementById("page")! });
