"""Tables, figures and the page that show a study, and the comparison of many studies."""
