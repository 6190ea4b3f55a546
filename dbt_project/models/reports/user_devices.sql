-- One row per user and device; what stands for "none" is not one.
with

logins as (

    select * from {{ ref('user_logins') }}

),

pairs as (

    select
        user_id,
        masked_device_id,
        device_id_is_placeholder is true as is_placeholder,
        count(*) as logins,
        min(logged_in_at) as first_seen_at,
        max(logged_in_at) as last_seen_at
    from logins
    group by user_id, masked_device_id, device_id_is_placeholder is true

),

compared as (

    select
        user_id,
        masked_device_id,
        logins,
        first_seen_at,
        last_seen_at,
        first_seen_at > min(first_seen_at) over (partition by user_id) as came_later,
        is_placeholder
    from pairs

),

without_placeholders as (

    select
        user_id,
        masked_device_id,
        logins,
        first_seen_at,
        last_seen_at,
        came_later
    from compared
    where not is_placeholder

)

select * from without_placeholders
